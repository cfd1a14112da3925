"""What the small commands do. Each function returns the exit status."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import torch
from rich.progress import track
from rich.table import Table

from ..checkpoint import load_model, read_training, save_model
from ..convert import convert as convert_file
from ..data.coco import CocoFolder
from ..data.synthetic import synthesize
from ..errors import DataError, counted
from ..export import export as export_model
from ..files import output_folder, remove_leftovers, write_text
from ..formats import datasets
from ..models import DeepMask
from ..search import ProposalGenerator
from ..visualize import film_strip, save_picture
from .options import Convert, ConvertDataset, Demo, Export, Pack, Synth
from .output import ERR, say, show
from .shared import print_timing

DEMO_PHOTO = "coffee.jpg"


def demo(options: Demo) -> int:
    """Find objects on the photo that comes with the package; show the best and how one mask grows."""
    photo = Path(str(files("sharpmask") / "assets" / DEMO_PHOTO))
    with output_folder(options.out):
        generator = ProposalGenerator(load_model(), top_n=100)
        found = generator.generate(photo)
        entries = [{**entry, "file_name": photo.name, "exif": found.exif} for entry in found.to_coco(1)]
        write_text(options.out / "proposals.json", json.dumps(entries))
        found.save_overlay(options.out / "overlay.png", limit=8)
        pixels, stages = generator.grow(photo)
        save_picture(film_strip(pixels, stages), options.out / "film_strip.png")
    title = f"best of {counted(len(found), 'proposal')} on {photo.name}"
    table = Table("", title=title, title_justify="left")
    for column in ("score", "x", "y", "width", "height"):
        table.add_column(column, justify="right")
    for i, (score, box) in enumerate(zip(found.scores[:10], found.boxes[:10], strict=True), 1):
        table.add_row(str(i), f"{score:.2f}", *(f"{v:.0f}" for v in box))
    show(table)
    print_timing(found.timing, "time per stage")
    for name, what in (
        ("proposals.json", "COCO results"),
        ("overlay.png", "the best masks over the photo"),
        ("film_strip.png", "one mask growing through the refinement modules"),
    ):
        say(f"{options.out / name}: {what}")
    return 0


def synth(options: Synth) -> int:
    """Write a generated data set."""
    path = synthesize(
        options.out,
        images=options.images,
        seed=options.seed,
        size=options.size,
        textures=options.textures,
        progress=True,
    )
    say(f"{path}: {counted(options.images, 'picture')}")
    return 0


def pack(options: Pack) -> int:
    """Write a checkpoint again with 16-bit weights and new search settings."""
    model = load_model(options.checkpoint)
    model.search = options.search.over(model.search)
    if options.rank_on is not None:
        model.search = replace(model.search, ranking=_ranking(model, options.rank_on))
    remove_leftovers(options.out.parent, options.out.name)
    save_model(model, options.out, training=read_training(options.checkpoint), dtype=torch.float16)
    say(f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB")
    return 0


def _ranking(model: DeepMask, dataset: Path) -> tuple[float, ...]:
    """The ranking of a model's masks, fitted to photos."""
    from ..training.ranking import fit_ranking, rankable  # here, because no other command needs it

    folder = CocoFolder(dataset)
    photos = rankable(folder)
    generator = ProposalGenerator(model, top_n=1000)
    weights = fit_ranking(generator, folder, track(photos, "Ranking", console=ERR))
    say(f"{dataset}: the ranking is fitted to {len(photos)} of {counted(len(folder.photos), 'photo')}")
    return weights


def convert_dataset(options: ConvertDataset) -> int:
    """Write annotations of another program as a COCO instances file."""
    out = options.out or options.dataset / "instances.json"
    if options.out is None and out.exists() and not options.overwrite:
        raise DataError(f"out: {out} is there already; give --out another file, or --overwrite")
    document, notes = datasets.convert(options.dataset, options.layout, options.exif)
    if options.partial:
        document = {"info": {"complete": False}} | document
    remove_leftovers(out.parent, out.name)
    write_text(out, json.dumps(document, allow_nan=False))
    for note in notes:
        say(f"{options.dataset}: {note}", ERR)
    told = f"{counted(len(document['images']), 'photo')}, {counted(len(document['annotations']), 'object')}"
    say(f"{out}: {told}")
    return 0


def export(options: Export) -> int:
    """Write a model's graphs."""
    with output_folder(options.out):
        for path in export_model(load_model(options.checkpoint), options.out, options.to):
            say(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    return 0


def convert(options: Convert) -> int:
    """Turn weights of another program into a checkpoint."""
    found = convert_file(options.weights)
    remove_leftovers(options.out.parent, options.out.name)
    for name in found.unused:
        say(f"not part of the model: {name}", ERR)
    save_model(found.model, options.out, training={"converted_from": options.weights.name})
    count = sum(p.numel() for p in found.model.parameters())
    say(f"{options.out}: {type(found.model).__name__} of {count / 1e6:.2f} million parameters")
    return 0

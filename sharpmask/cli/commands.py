"""What the commands do, except ``eval`` and ``train``. Each function returns the exit status."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from rich.table import Table

from ..checkpoint import load_model, read_training, save_model
from ..convert import convert as convert_file
from ..data.photos import find_photos
from ..data.synthetic import synthesize
from ..errors import DataError
from ..files import write_text
from ..search import ProposalGenerator, Proposals
from ..visualize import film_strip, save_picture
from .options import Convert, Demo, Pack, Propose, Synth
from .output import ERR, say, show
from .shared import check_device, make_generator, merge_results, search_settings

DEMO_PHOTO = "coffee.jpg"


def print_timing(timing: Mapping[str, float], title: str) -> None:
    """Print the seconds by stage as milliseconds and shares."""
    table = Table("stage", title=title, title_justify="left")
    table.add_column("ms", justify="right")
    table.add_column("share", justify="right")
    total = sum(timing.values()) or 1.0
    for stage, seconds in timing.items():
        table.add_row(stage, f"{seconds * 1e3:.1f}", f"{seconds / total:.0%}")
    table.add_section()
    table.add_row("total", f"{total * 1e3:.1f}", "")
    show(table)


def demo(options: Demo) -> int:
    """Find objects on the photo that comes with the package; show the best and how one mask grows."""
    photo = Path(str(files("sharpmask") / "assets" / DEMO_PHOTO))
    generator = ProposalGenerator(load_model(), top_n=100)
    found = generator.generate(photo)
    table = Table("", title=f"best of {len(found)} proposals on {photo.name}", title_justify="left")
    for column in ("score", "x", "y", "width", "height"):
        table.add_column(column, justify="right")
    for i, (score, box) in enumerate(zip(found.scores[:10], found.boxes[:10], strict=True), 1):
        table.add_row(str(i), f"{score:.2f}", *(f"{v:.0f}" for v in box))
    show(table)
    print_timing(found.timing, "time per stage")
    write_text(options.out / "proposals.json", json.dumps(results_of(found, 1, photo)))
    found.save_overlay(options.out / "overlay.png", limit=8)
    pixels, stages = generator.grow(photo)
    save_picture(film_strip(pixels, stages), options.out / "film_strip.png")
    for name, what in (
        ("proposals.json", "COCO results"),
        ("overlay.png", "the best masks over the photo"),
        ("film_strip.png", "one mask growing through the refinement modules"),
    ):
        say(f"{options.out / name}: {what}")
    return 0


def propose(options: Propose) -> int:
    """Find objects on photos. A photo that cannot be read is reported and makes the exit status 1."""
    found_photos, passed_over = find_photos(options.images, recursive=options.recursive)
    for line in passed_over:
        say(line, ERR)
    photos = [photo.path for photo in found_photos]
    check_device(options.search.device)
    model = load_model(options.checkpoint, options.search.device)
    generator = make_generator(model, options.search, top_n=options.top_n, refine=options.refine, exif=options.exif)
    ids = image_ids(photos)
    timing: dict[str, float] = {}
    parts: list[Path] = []
    seen = 0
    for photo in track(photos, "Proposals", console=ERR, disable=len(photos) == 1):
        part = options.out / f"{photo.stem}-{ids[photo]}.json"
        if options.resume and part.exists():
            parts.append(part)
            continue
        try:
            found = generator.generate(photo)
        except DataError as error:
            say(f"sharpmask: {error}", ERR)
            continue
        if options.overlay:
            found.save_overlay(part.with_suffix(".png"))
        # Written last, because --resume takes a photo with a result for done.
        write_text(part, json.dumps(results_of(found, ids[photo], photo)))
        parts.append(part)
        seen += 1
        for stage, seconds in found.timing.items():
            timing[stage] = timing.get(stage, 0.0) + seconds
    merge_results(parts, options.out / "proposals.json")
    if options.timing and seen:
        print_timing({k: v / seen for k, v in timing.items()}, f"time per photo, mean of {seen}")
    say(f"{options.out / 'proposals.json'}: {len(parts)} of {len(photos)} photos")
    return 0 if len(parts) == len(photos) else 1


def image_ids(photos: Sequence[Path]) -> dict[Path, int]:
    """COCO ids: the file names where all are numbers and differ, otherwise 1, 2, ..."""
    stems = [p.stem for p in photos]
    if all(s.isdecimal() for s in stems) and len({int(s) for s in stems}) == len(stems):
        return {p: int(p.stem) for p in photos}
    return {p: i for i, p in enumerate(photos, 1)}


def results_of(found: Proposals, image_id: int, photo: Path) -> list[dict[str, Any]]:
    """A photo's proposals as entries of a COCO results file, with the photo's name and its kind of pixels in each."""
    return [{**entry, "file_name": photo.name, "exif": found.exif} for entry in found.to_coco(image_id)]


def synth(options: Synth) -> int:
    """Write a generated data set."""
    path = synthesize(
        options.out, images=options.images, seed=options.seed, size=options.size, textures=options.textures
    )
    say(f"{path}: {options.images} pictures")
    return 0


def pack(options: Pack) -> int:
    """Write a checkpoint again with 16-bit weights and new search settings."""
    model = load_model(options.checkpoint)
    model.search = search_settings(model, options.search)
    save_model(model, options.out, training=read_training(options.checkpoint), dtype=torch.float16)
    say(f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB")
    return 0


def convert(options: Convert) -> int:
    """Turn weights of another program into a checkpoint."""
    found = convert_file(options.weights)
    for name in found.unused:
        say(f"not part of the model: {name}", ERR)
    save_model(found.model, options.out, training={"converted_from": options.weights.name})
    count = sum(p.numel() for p in found.model.parameters())
    say(f"{options.out}: {type(found.model).__name__} of {count / 1e6:.2f} million parameters")
    return 0

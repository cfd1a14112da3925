"""What each command of :mod:`sharpmask.cli` does. A command gives its exit status."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ..checkpoint import load_model, read_training, save_model
from ..convert import convert as convert_file
from ..data.coco import CocoFolder
from ..data.images import FORMATS
from ..data.synthetic import synthesize
from ..errors import DataError
from ..evaluation import Validator, average_recall, load_results, plot_recall, recall_table
from ..files import write_text
from ..models import DeepMask, SharpMask
from ..models.config import SearchConfig
from ..search import ProposalGenerator, Proposals
from ..training import TrainConfig
from ..training import train as run_training
from ..visualize import film_strip, save_png

if TYPE_CHECKING:
    from . import Convert, Demo, Eval, Pack, Propose, SearchOptions, Synth

OUT = Console()
ERR = Console(stderr=True)

DEMO_PHOTO = "coffee.jpg"


def say(text: str, console: Console = OUT) -> None:
    """One line of text as it is: no markup in a file's name, no line break in a path."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def check_device(name: str) -> None:
    """Raises ``DataError`` for a device that PyTorch does not know or that is not there."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise DataError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error


def search_settings(model: DeepMask, options: SearchOptions) -> SearchConfig:
    """The checkpoint's settings, those given on the command line over them."""
    given = {
        k: getattr(options, k)
        for k in ("scales", "threshold", "mask_nms", "box_nms", "soft_nms", "stability", "scale_prior", "geometry")
    }
    # 1 switches suppression off: no IoU exceeds it.
    off = {k: None for k in ("mask_nms", "box_nms") if given[k] == 1}
    return replace(model.search, **{k: v for k, v in given.items() if v is not None} | off)


def make_generator(model: DeepMask, options: SearchOptions, *, top_n: int, refine: bool) -> ProposalGenerator:
    return ProposalGenerator(model, top_n, refine, search_settings(model, options), options.max_side or None)


def print_timing(timing: Mapping[str, float], title: str) -> None:
    table = Table("stage", title=title, title_justify="left")
    table.add_column("ms", justify="right")
    table.add_column("share", justify="right")
    total = sum(timing.values()) or 1.0
    for stage, seconds in timing.items():
        table.add_row(stage, f"{seconds * 1e3:.1f}", f"{seconds / total:.0%}")
    table.add_section()
    table.add_row("total", f"{total * 1e3:.1f}", "")
    OUT.print(table)


def demo(options: Demo) -> int:
    photo = Path(str(files("sharpmask") / "assets" / DEMO_PHOTO))
    generator = ProposalGenerator(load_model(), top_n=100)
    found = generator.generate(photo)
    table = Table("", title=f"best of {len(found)} proposals on {photo.name}", title_justify="left")
    for column in ("score", "x", "y", "width", "height"):
        table.add_column(column, justify="right")
    for i, (score, box) in enumerate(zip(found.scores[:10], found.boxes[:10], strict=True), 1):
        table.add_row(str(i), f"{score:.2f}", *(f"{v:.0f}" for v in box))
    OUT.print(table)
    print_timing(found.timing, "time per stage")
    write_text(options.out / "proposals.json", json.dumps(results_of(found, 1, photo)))
    found.save_overlay(options.out / "overlay.png", limit=8)
    pixels, stages = generator.grow(photo)
    save_png(film_strip(pixels, stages), options.out / "film_strip.png")
    for name, what in (
        ("proposals.json", "COCO results"),
        ("overlay.png", "the best masks over the photo"),
        ("film_strip.png", "one mask growing through the refinement modules"),
    ):
        say(f"{options.out / name}: {what}")
    return 0


def propose(options: Propose) -> int:
    photos = find_photos(options.images)
    check_device(options.search.device)
    model = load_model(options.checkpoint, options.search.device)
    generator = make_generator(model, options.search, top_n=options.top_n, refine=options.refine)
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
        # The result comes last: where it exists, the photo is done.
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


def find_photos(paths: Sequence[Path]) -> list[Path]:
    """Files as given, and the image files of folders, sorted."""
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}
    found: list[Path] = []
    for path in paths:
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes) if path.is_dir() else [path]
        if not inside:
            raise DataError(f"{path}: no image file in this folder")
        found += inside
    if not found:
        raise DataError("images: expected photos or folders of photos, got none")
    return list(dict.fromkeys(found))


def image_ids(photos: Sequence[Path]) -> dict[Path, int]:
    """COCO ids: the numbers in the file names if every name is a different number, else 1, 2, ..."""
    stems = [p.stem for p in photos]
    if all(s.isdecimal() for s in stems) and len({int(s) for s in stems}) == len(stems):
        return {p: int(p.stem) for p in photos}
    return {p: i for i, p in enumerate(photos, 1)}


def results_of(found: Proposals, image_id: int, photo: Path) -> list[dict[str, Any]]:
    return [{**entry, "file_name": photo.name} for entry in found.to_coco(image_id)]


def merge_results(parts: Iterable[Path], path: Path) -> None:
    """One COCO results file of the photos' own, one proposal a line, however many they are."""

    def lines() -> Iterator[str]:
        separator = "[\n"
        for part in parts:
            for entry in json.loads(part.read_text()):
                yield separator + json.dumps(entry)
                separator = ",\n"
        yield "\n]\n" if separator == ",\n" else "[]\n"

    write_text(path, lines())


def eval(options: Eval) -> int:
    if options.results is not None and options.checkpoint is not None:
        raise DataError("results and checkpoint: give one of the two")
    categories = list(options.categories) or None
    folder = CocoFolder(
        options.dataset, annotations=options.annotations, categories=categories, skip_bad=options.skip_bad
    )
    truth = folder.ground_truth()
    rows: dict[str, Sequence[Mapping[str, Any]]] = {}
    summary: dict[str, Any] = {}
    if options.results is not None:
        rows[options.results.stem] = load_results(options.results, truth)
    else:
        check_device(options.search.device)
        model = load_model(options.checkpoint, options.search.device)
        refined = isinstance(model, SharpMask)
        kinds = ({"refined": True} if refined else {}) | ({"coarse": False} if options.coarse or not refined else {})
        for name, refine in kinds.items():
            generator = make_generator(model, options.search, top_n=options.top_n, refine=refine)
            path = options.out / f"{name}.json"
            bad = search_folder(folder, generator, options.out / name, path, resume=options.resume)
            truth = without_images(truth, bad)
            rows[name] = load_results(path, truth)
        if options.patches:
            summary["patches"] = measure_patches(model, folder, options.patches)
    recalls = {f"{n}, masks": average_recall(truth, r, kind="segm") for n, r in rows.items()}
    boxes = {f"{n}, boxes": average_recall(truth, r, kind="bbox") for n, r in rows.items()}
    for group in (recalls, boxes):
        OUT.print(recall_table(group, paper=True))
    for name, value in summary.get("patches", {}).items():
        say(f"{name:24} {value:.3f}")
    summary |= {name: recall.to_json() for name, recall in (recalls | boxes).items()}
    write_text(options.out / "recall.json", json.dumps(summary, indent=1))
    try:
        plot_recall(recalls | boxes, options.out / "recall.png")
    except ImportError as error:
        say(f"no plot: {error}", ERR)
    if folder.skipped:
        say(f"left out {len(folder.skipped)} broken entries, first: {folder.skipped[0]}", ERR)
    say(f"{options.out}: recall.json")
    return 0


def search_folder(
    folder: CocoFolder, generator: ProposalGenerator, parts: Path, path: Path, *, resume: bool
) -> set[int]:
    """Proposals of all photos of a folder into ``path``, photo by photo so that it can go on later.

    Gives the ids of the photos that turned out to be broken and were left out.
    """
    outputs = {photo.id: parts / f"{photo.id}.json" for photo in folder.photos}
    bad: set[int] = set()
    for photo in track(folder.photos, "Proposals", console=ERR):
        file = outputs[photo.id]
        if resume and file.exists():
            continue
        try:
            found = generator.generate(photo.load())
        except DataError as error:
            if not folder.skip_bad:
                raise
            bad.add(photo.id)
            if str(error) not in folder.skipped:
                folder.skipped.append(str(error))
            continue
        write_text(file, json.dumps(found.to_coco(photo.id)))
    merge_results((file for key, file in outputs.items() if key not in bad), path)
    return bad


def without_images(truth: dict[str, Any], ids: set[int]) -> dict[str, Any]:
    """A COCO ``instances`` dict without some images and what is on them."""
    return truth | {
        "images": [image for image in truth["images"] if image["id"] not in ids],
        "annotations": [entry for entry in truth["annotations"] if entry["image_id"] not in ids],
    }


def measure_patches(model: DeepMask, folder: CocoFolder, count: int) -> dict[str, float]:
    """IoU of single patches and score accuracy (DeepMask, section 5)."""
    return Validator(folder, model.config, samples=count)(model)


def synth(options: Synth) -> int:
    path = synthesize(
        options.out, images=options.images, seed=options.seed, size=options.size, textures=options.textures
    )
    say(f"{path}: {options.images} pictures")
    return 0


def pack(options: Pack) -> int:
    model = load_model(options.checkpoint)
    model.search = search_settings(model, options.search)
    save_model(model, options.out, training=read_training(options.checkpoint), dtype=torch.float16)
    say(f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB")
    return 0


def convert(options: Convert) -> int:
    found = convert_file(options.weights)
    for name in found.unused:
        say(f"not part of the model: {name}", ERR)
    save_model(found.model, options.out, training={"converted_from": options.weights.name})
    count = sum(p.numel() for p in found.model.parameters())
    say(f"{options.out}: {type(found.model).__name__} of {count / 1e6:.2f} million parameters")
    return 0


def train(config: TrainConfig) -> int:
    check_device(config.device)
    run_training(config, ERR)
    return 0

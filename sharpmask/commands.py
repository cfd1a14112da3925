"""What each command of :mod:`sharpmask.cli` does. A command gives its exit status."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from .checkpoint import load_model
from .data.coco import CocoFolder
from .data.images import FORMATS
from .data.synthetic import synthesize
from .errors import DataError
from .evaluation import average_recall, load_results, plot_recall, recall_table
from .files import write_text
from .inference import ProposalGenerator
from .models import DeepMask
from .proposals import Proposals
from .training import TrainConfig
from .training import train as run_training
from .training.loop import Validator
from .visualize import film_strip, save_png

if TYPE_CHECKING:
    from .cli import Demo, Eval, Propose, SearchOptions, Synth

OUT = Console()
ERR = Console(stderr=True)

DEMO_PHOTO = "coffee.jpg"
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
assert len(FORMATS) == 7  # one entry above, or two spellings, per format


def make_generator(model: DeepMask, options: SearchOptions, *, top_n: int, refine: bool) -> ProposalGenerator:
    """A generator with the checkpoint's settings, those given on the command line over them."""
    given = {k: getattr(options, k) for k in ("scales", "threshold", "mask_nms", "box_nms")}
    # 1 switches suppression off: no IoU exceeds it.
    off = {k: None for k in ("mask_nms", "box_nms") if given[k] == 1}
    search = replace(model.search, **{k: v for k, v in given.items() if v is not None} | off)
    return ProposalGenerator(model, top_n, refine, search, options.max_side or None)


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
        OUT.print(f"{options.out / name}: {what}", highlight=False)
    return 0


def propose(options: Propose) -> int:
    photos = find_photos(options.images)
    model = load_model(options.checkpoint, options.search.device)
    generator = make_generator(model, options.search, top_n=options.top_n, refine=options.refine)
    ids = image_ids(photos)
    timing: dict[str, float] = {}
    failed = seen = 0
    for photo in track(photos, "Proposals", console=ERR, disable=len(photos) == 1):
        part = options.out / f"{photo.stem}-{ids[photo]}.json"
        if options.resume and part.exists():
            continue
        try:
            found = generator.generate(photo)
        except DataError as error:
            ERR.print(f"sharpmask: {error}", markup=False, highlight=False, soft_wrap=True)
            failed += 1
            continue
        if options.overlay:
            found.save_overlay(part.with_suffix(".png"))
        # The result comes last: where it exists, the photo is done.
        write_text(part, json.dumps(results_of(found, ids[photo], photo)))
        seen += 1
        for stage, seconds in found.timing.items():
            timing[stage] = timing.get(stage, 0.0) + seconds
    parts = [options.out / f"{p.stem}-{ids[p]}.json" for p in photos]
    merge_results(parts, options.out / "proposals.json")
    if options.timing and seen:
        print_timing({k: v / seen for k, v in timing.items()}, f"time per photo, mean of {seen}")
    OUT.print(f"{options.out / 'proposals.json'}: {len(photos) - failed} of {len(photos)} photos", highlight=False)
    return 1 if failed else 0


def find_photos(paths: Sequence[Path]) -> list[Path]:
    """Files as given, and the image files of folders, sorted."""
    found: list[Path] = []
    for path in paths:
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        if not inside:
            raise DataError(f"{path}: no image file in this folder")
        found += inside
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
            if part.exists():
                for entry in json.loads(part.read_text()):
                    yield separator + json.dumps(entry)
                    separator = ",\n"
        yield "\n]\n" if separator == ",\n" else "[]\n"

    write_text(path, lines())


def eval(options: Eval) -> int:
    if options.results is not None and options.checkpoint is not None:
        raise DataError("results and checkpoint: give one of the two")
    folder = CocoFolder(options.dataset, categories=list(options.categories) or None, skip_bad=options.skip_bad)
    truth = folder.ground_truth()
    rows: dict[str, Sequence[Mapping[str, Any]]] = {}
    summary: dict[str, Any] = {}
    if options.results is not None:
        rows[options.results.stem] = load_results(options.results, truth)
    else:
        model = load_model(options.checkpoint, options.search.device)
        kinds = {"refined": True} | ({"coarse": False} if options.coarse else {})
        for name, refine in kinds.items():
            generator = make_generator(model, options.search, top_n=options.top_n, refine=refine)
            path = options.out / f"{name}.json"
            search_folder(folder, generator, options.out / name, path, resume=options.resume)
            rows[name] = load_results(path, truth)
        if options.patches:
            summary["patches"] = measure_patches(model, folder, options.patches)
    recalls = {f"{n}, masks": average_recall(truth, r, kind="segm") for n, r in rows.items()}
    boxes = {f"{n}, boxes": average_recall(truth, r, kind="bbox") for n, r in rows.items()}
    for group in (recalls, boxes):
        OUT.print(recall_table(group, paper=True))
    for name, value in summary.get("patches", {}).items():
        OUT.print(f"{name:24} {value:.3f}", highlight=False)
    summary |= {name: recall.to_json() for name, recall in (recalls | boxes).items()}
    write_text(options.out / "recall.json", json.dumps(summary, indent=1))
    try:
        plot_recall(recalls | boxes, options.out / "recall.png")
    except ImportError as error:
        ERR.print(f"no plot: {error}", markup=False)
    if folder.skipped:
        ERR.print(f"left out {len(folder.skipped)} broken entries, first: {folder.skipped[0]}", markup=False)
    OUT.print(f"{options.out}: recall.json", highlight=False)
    return 0


def search_folder(folder: CocoFolder, generator: ProposalGenerator, parts: Path, path: Path, *, resume: bool) -> None:
    """Proposals of all photos of a folder into ``path``, photo by photo so that it can go on later."""
    outputs = [parts / f"{photo.id}.json" for photo in folder.photos]
    for photo, file in track(list(zip(folder.photos, outputs, strict=True)), "Proposals", console=ERR):
        if resume and file.exists():
            continue
        try:
            found = generator.generate(photo.load())
        except DataError as error:
            if not folder.skip_bad:
                raise
            folder.skipped.append(str(error))
            continue
        write_text(file, json.dumps(found.to_coco(photo.id)))
    merge_results(outputs, path)


def measure_patches(model: DeepMask, folder: CocoFolder, count: int) -> dict[str, float]:
    """IoU of single patches and score accuracy (DeepMask, section 5)."""
    return Validator(folder, model.config, samples=count)(model)


def synth(options: Synth) -> int:
    path = synthesize(
        options.out, images=options.images, seed=options.seed, size=options.size, textures=options.textures
    )
    OUT.print(f"{path}: {options.images} pictures", highlight=False)
    return 0


def train(config: TrainConfig) -> int:
    run_training(config, ERR)
    return 0

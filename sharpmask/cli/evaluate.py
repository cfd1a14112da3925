"""The command ``sharpmask eval``: average recall of a model or of a results file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.progress import track

from ..checkpoint import load_model
from ..data.coco import CocoFolder
from ..errors import DataError
from ..evaluation import Validator, average_recall, load_results, plot_recall, recall_table
from ..files import write_text
from ..models import DeepMask, SharpMask
from ..search import ProposalGenerator
from .options import Eval
from .output import ERR, say, show
from .shared import check_device, make_generator, merge_results

Results = Sequence[Mapping[str, Any]]


def evaluate(options: Eval) -> int:
    """Measure, print and write average recall. Returns the exit status."""
    if options.results is not None and options.checkpoint is not None:
        raise DataError("results and checkpoint: give one of the two")
    categories = list(options.categories) or None
    folder = CocoFolder(
        options.dataset,
        annotations=options.annotations,
        categories=categories,
        skip_bad=options.skip_bad,
        exif=options.exif,
        links=options.links,
    )
    for note in folder.notes:
        say(note, ERR)
    truth = folder.ground_truth()
    patches: dict[str, float] = {}
    if options.results is not None:
        rows: dict[str, Results] = {options.results.stem: load_results(options.results, truth)}
    else:
        check_device(options.search.device)
        model = load_model(options.checkpoint, options.search.device)
        rows, truth = search(model, folder, truth, options)
        if options.patches:
            patches = Validator(folder, model.config, samples=options.patches)(model)
    report(rows, truth, patches, options.out)
    if folder.skipped:
        say(f"left out {len(folder.skipped)} broken entries, first: {folder.skipped[0]}", ERR)
    say(f"{options.out}: recall.json")
    return 0


def search(
    model: DeepMask, folder: CocoFolder, truth: dict[str, Any], options: Eval
) -> tuple[dict[str, Results], dict[str, Any]]:
    """The model's proposals by kind of mask, refined or coarse, and the truth without broken photos."""
    refined = isinstance(model, SharpMask)
    kinds = ({"refined": True} if refined else {}) | ({"coarse": False} if options.coarse or not refined else {})
    rows: dict[str, Results] = {}
    for name, refine in kinds.items():
        generator = make_generator(model, options.search, top_n=options.top_n, refine=refine)
        path = options.out / f"{name}.json"
        bad = search_folder(folder, generator, options.out / name, path, resume=options.resume)
        truth = without_images(truth, bad)
        rows[name] = load_results(path, truth)
    return rows, truth


def search_folder(
    folder: CocoFolder, generator: ProposalGenerator, parts: Path, path: Path, *, resume: bool
) -> set[int]:
    """Search all photos of a folder and write the proposals to ``path``.

    Each photo's own proposals are kept in the folder ``parts``, so that a stopped search can resume. Returns the
    ids of photos that were left out because they are broken.
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
    """A COCO ``instances`` dict without some images and their annotations."""
    return truth | {
        "images": [image for image in truth["images"] if image["id"] not in ids],
        "annotations": [entry for entry in truth["annotations"] if entry["image_id"] not in ids],
    }


def report(rows: dict[str, Results], truth: dict[str, Any], patches: dict[str, float], out: Path) -> None:
    """Print the recall of masks and boxes, and write it with a plot to the folder ``out``."""
    masks = {f"{n}, masks": average_recall(truth, r, kind="segm") for n, r in rows.items()}
    boxes = {f"{n}, boxes": average_recall(truth, r, kind="bbox") for n, r in rows.items()}
    for group in (masks, boxes):
        show(recall_table(group, paper=True))
    for name, value in patches.items():
        say(f"{name:24} {value:.3f}")
    summary: dict[str, Any] = {"patches": patches} if patches else {}
    summary |= {name: recall.to_json() for name, recall in (masks | boxes).items()}
    write_text(out / "recall.json", json.dumps(summary, indent=1))
    try:
        plot_recall(masks | boxes, out / "recall.png")
    except ImportError as error:
        say(f"no plot: {error}", ERR)

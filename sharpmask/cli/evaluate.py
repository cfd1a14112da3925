"""The command ``sharpmask eval``: average recall of a model or of a results file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint import load_model
from ..data.coco import CocoFolder, Photo
from ..data.images import read_header
from ..devices import usable_device
from ..errors import DataError
from ..evaluation import Recall, Validator, average_recall, load_results, plot_recall, recall_table
from ..files import output_folder, write_text
from ..models import DeepMask, SharpMask
from .options import Eval
from .output import ERR, say, show
from .overlap import Steps
from .parts import Entries, Parts
from .searching import is_large, search_all
from .shared import make_generator, searching, settings_of

Results = Sequence[Mapping[str, Any]]
Recalls = dict[str, Recall]

KINDS = {"refined": True, "coarse": False}
"""The kinds of masks by name, and whether they are refined."""


def evaluate(options: Eval) -> int:
    """Measure, write and print average recall. Returns the exit status."""
    folder = CocoFolder(
        options.dataset,
        annotations=options.annotations,
        categories=list(options.categories) or None,
        skip_bad=options.skip_bad,
        exif=options.exif,
        links=options.links,
    )
    for note in folder.notes:
        say(note, ERR)
    truth = folder.ground_truth()
    if all(entry["iscrowd"] for entry in truth["annotations"]):
        raise DataError(f"{folder.annotation_file}: must hold an object to measure, got {_nothing(folder)}")
    patches: dict[str, float] = {}
    with output_folder(options.out, *KINDS):
        if options.results is not None:
            rows: dict[str, Results] = {options.results.stem: load_results(options.results, truth)}
            check_pixels(options.results, rows[options.results.stem], folder)
        else:
            model = load_model(options.checkpoint, usable_device(options.search.device))
            if options.patches:  # before the search, which takes longer: it may find nothing to measure
                patches = Validator(folder, model.config, samples=options.patches)(model)
            rows, truth = search(model, folder, truth, options)
        masks, boxes = measure(rows, truth)
        write(masks | boxes, patches, options.out)
    for group in filter(None, (masks, boxes)):
        show(recall_table(group, paper=True))
    for name, value in patches.items():
        say(f"{name:24} {value:.3f}")
    if folder.skipped:
        say(f"left out {len(folder.skipped)} broken entries, first: {folder.skipped[0]}", ERR)
    say(f"{options.out}: recall.json")
    return 0


def _nothing(folder: CocoFolder) -> str:
    """What a folder without objects holds."""
    crowds = sum(len(photo.instances) for photo in folder.photos)
    left_out = f", {len(folder.skipped)} left out, first: {folder.skipped[0]}" if folder.skipped else ""
    return f"{len(folder.photos)} photos and {crowds} crowds{left_out}"


def check_pixels(path: Path, results: Results, folder: CocoFolder) -> None:
    """Raise ``DataError`` if results mean other pixels of a photo than its annotations do."""
    said = {entry["image_id"]: entry["exif"] for entry in results if "exif" in entry}
    for photo in folder.photos:
        exif = said.get(photo.id, photo.exif)
        if exif != photo.exif and read_header(photo.path).orientation != 1:
            raise DataError(
                f"{path}: must be of photos as they are annotated, which is {photo.exif}, got those of {photo.path} "
                f"as {exif}; search them with propose --exif {photo.exif}"
            )


def search(
    model: DeepMask, folder: CocoFolder, truth: dict[str, Any], options: Eval
) -> tuple[dict[str, Results], dict[str, Any]]:
    """The model's proposals by kind of mask, refined or coarse, and the truth without broken photos."""
    refines = isinstance(model, SharpMask)
    asked = {"refined": refines, "coarse": options.coarse or not refines}
    paths = {name: options.out / f"{name}.json" for name in KINDS if asked[name]}
    bad: set[int] = set()
    for name, path in paths.items():
        bad |= search_folder(model, folder, options, path, refine=KINDS[name])
    # A photo may have broken between the two searches.
    rows: dict[str, Results] = {
        name: [entry for entry in load_results(path, truth) if entry["image_id"] not in bad]
        for name, path in paths.items()
    }
    return rows, without_images(truth, bad)


@dataclass(frozen=True)
class Target:
    """A photo of the data set to search."""

    photo: Photo

    @property
    def path(self) -> Path:
        """Its file."""
        return self.photo.path

    @property
    def name(self) -> str:
        """What tells it from other photos."""
        return self.path.name

    @property
    def part(self) -> str:
        """The name of the file of its results."""
        return f"{self.photo.id}.json"


def search_folder(model: DeepMask, folder: CocoFolder, options: Eval, path: Path, *, refine: bool) -> set[int]:
    """Search all photos of a folder and write the proposals to ``path``.

    Each photo's own proposals are kept in a folder of the same name, so that a stopped search can resume. Returns
    the ids of photos that were left out because they are broken.
    """
    generator = make_generator(
        model, options.search, options.compute, top_n=options.top_n, refine=refine, exif=options.exif or "stored"
    )
    bad: set[int] = set()

    def refuse(target: Target, error: DataError) -> None:
        if not folder.skip_bad:
            raise error
        bad.add(target.photo.id)
        if str(error) not in folder.skipped:
            folder.skipped.append(str(error))

    targets = [Target(photo) for photo in folder.photos]
    parts = Parts(path.with_suffix(""), settings_of(generator, options.checkpoint))
    with searching(generator, len(targets)) as (at_once, search):
        steps = Steps[Target, Entries](
            read=lambda target: generator.see(target.photo.load()),
            search=lambda _, picture: search(picture),
            finish=lambda target, found: found.to_coco(target.photo.id),
            is_large=lambda target: is_large(target.path),
            at_once=at_once,
        )
        search_all(targets, parts, steps, refuse, merged=path, resume=options.resume)
    return bad


def without_images(truth: dict[str, Any], ids: set[int]) -> dict[str, Any]:
    """A COCO ``instances`` dict without some images and their annotations."""
    return truth | {
        "images": [image for image in truth["images"] if image["id"] not in ids],
        "annotations": [entry for entry in truth["annotations"] if entry["image_id"] not in ids],
    }


def measure(rows: Mapping[str, Results], truth: dict[str, Any]) -> tuple[Recalls, Recalls]:
    """The recall of masks and of boxes by name. Results that have boxes alone are measured as boxes alone."""
    masks: Recalls = {}
    boxes: Recalls = {}
    for name, results in rows.items():
        with_mask = [entry for entry in results if "segmentation" in entry]
        if len(with_mask) < len(results):
            told = f"{len(results) - len(with_mask)} of {len(results)} results have no mask"
            say(f"{name}: {told}, so masks are measured of the others" if with_mask else f"{name}: {told}", ERR)
        if with_mask or not results:
            masks[f"{name}, masks"] = average_recall(truth, with_mask, kind="segm")
        boxes[f"{name}, boxes"] = average_recall(truth, results, kind="bbox")
    return masks, boxes


def write(recalls: Recalls, patches: dict[str, float], out: Path) -> None:
    """Write what was measured, and a plot of it, to the folder ``out``."""
    summary: dict[str, Any] = {"patches": patches} if patches else {}
    summary |= {name: recall.to_json() for name, recall in recalls.items()}
    write_text(out / "recall.json", json.dumps(summary, indent=1))
    try:
        plot_recall(recalls, out / "recall.png")
    except ImportError as error:
        say(f"no plot: {error}", ERR)

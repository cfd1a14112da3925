"""The command ``sharpmask eval``: average recall of a model or of a results file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint import load_model
from ..data.coco import CocoFolder, Photo
from ..data.images import read_header
from ..devices import usable_device
from ..errors import DataError, counted
from ..evaluation import Validator, group_names, load_results
from ..files import output_folder
from ..models import DeepMask, SharpMask
from .measures import GALLERY, Results, measure
from .options import Eval
from .output import ERR, say
from .overlap import Steps
from .parts import Entries, Parts
from .searching import is_large, search_all
from .shared import make_generator, searching, settings_of

KINDS = {"refined": True, "coarse": False}
"""The kinds of masks by name, and whether they are refined."""


def evaluate(options: Eval) -> int:
    """Measure, write and print average recall. Returns the exit status."""
    folder, truth = read_folder(options)
    patches: dict[str, float] = {}
    with output_folder(options.out, *KINDS):
        other = {} if options.against is None else {other_name(options): read_results(options.against, truth, folder)}
        if options.results is not None:
            rows = {options.results.stem: read_results(options.results, truth, folder)}
        else:
            model = load_model(options.checkpoint, usable_device(options.search.device))
            if options.patches:  # before the search, which takes longer: it may find nothing to measure
                patches = Validator(folder, model.config, samples=options.patches)(model)
            rows, truth = search(model, folder, truth, options)
        against = next(iter(other), None)
        report = measure(
            rows | known(other, truth), truth, by=options.groupings, resamples=options.bootstrap, against=against
        )
        report.write(patches, options.out)
        if options.gallery:
            photos = {photo.id: photo for photo in folder.photos}
            report.write_gallery(truth, lambda key: folder.load(photos[key]), options.gallery, options.out)
        else:  # one of an earlier measurement would show other misses
            (options.out / GALLERY).unlink(missing_ok=True)
    report.show()
    for name, value in patches.items():
        say(f"{name:24} {value:.3f}")
    if folder.skipped:
        entries = counted(len(folder.skipped), "broken entry", "broken entries")
        say(f"left out {entries}, first: {folder.skipped[0]}", ERR)
    say(f"{options.out}: recall.json{f', {GALLERY}' if options.gallery else ''}")
    return 0


def read_folder(options: Eval) -> tuple[CocoFolder, dict[str, Any]]:
    """The data set and its ground truth. Raises ``DataError`` for one on which nothing can be measured."""
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
    if "source" in options.groupings:
        group_names(truth, "source")  # before the search, because photos may not say their source
    return folder, truth


def read_results(path: Path, truth: dict[str, Any], folder: CocoFolder) -> Results:
    """Results of the photos as they are annotated."""
    results = load_results(path, truth)
    check_pixels(path, results, folder)
    return results


def other_name(options: Eval) -> str:
    """The name of the results to compare with, which is not one of those that are measured."""
    assert options.against is not None
    own = KINDS if options.results is None else (options.results.stem,)
    path = options.against.resolve()
    return path.stem if path.stem not in own else f"{path.parent.name}/{path.stem}"


def known(rows: dict[str, Results], truth: dict[str, Any]) -> dict[str, Results]:
    """Results without those of photos that were left out."""
    photos = {image["id"] for image in truth["images"]}
    return {name: [entry for entry in results if entry["image_id"] in photos] for name, results in rows.items()}


def _nothing(folder: CocoFolder) -> str:
    """What a folder without objects holds."""
    crowds = sum(len(photo.instances) for photo in folder.photos)
    left_out = f", {len(folder.skipped)} left out, first: {folder.skipped[0]}" if folder.skipped else ""
    return f"{counted(len(folder.photos), 'photo')} and {counted(crowds, 'crowd')}{left_out}"


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
    truth_left = without_images(truth, bad)
    return known({name: load_results(path, truth) for name, path in paths.items()}, truth_left), truth_left


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

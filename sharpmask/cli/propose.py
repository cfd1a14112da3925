"""The command ``sharpmask propose``: object masks in photos."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ..checkpoint import load_model
from ..data.photos import Found
from ..devices import usable_device
from ..errors import DataError, counted
from ..files import output_folder
from ..formats import parquet
from ..search import ProposalGenerator, Proposals
from .formats import check_formats, write_photo, write_yolo_classes
from .options import Propose
from .output import ERR, say
from .overlap import Steps
from .parts import Entries, Parts, has_results
from .photo_ids import SearchedPhoto, numbered
from .searching import is_large, search_all
from .shared import make_generator, print_timing, searching, settings_of
from .videos import frames_of


def propose(options: Propose, given: Found, videos: Sequence[Path] = ()) -> int:
    """Find objects on photos and frames of videos. What cannot be searched is reported and makes the exit status 1."""
    for line in () if options.quiet else given.passed_over:
        say(line, ERR)
    usable_device(options.search.device)
    earlier = partial(has_results, options.out) if options.resume else lambda _: False
    photos = numbered(given.photos, earlier)
    if options.json:
        return print_results(options, photos)
    check_formats(options.formats, photos)
    timings: list[dict[str, float]] = []
    failed: list[Path] = []

    def finish(photo: SearchedPhoto, found: Proposals) -> Entries:
        timings.append(found.timing)
        if options.overlay:
            found.save_overlay((options.out / photo.part).with_suffix(".png"))
        write_photo(found, photo, options.out, options.formats)
        return entries_of(photo, found)

    def refuse(photo: SearchedPhoto, error: DataError) -> None:
        say(f"sharpmask: {error}", ERR)
        failed.append(photo.path)

    with output_folder(options.out):
        if videos:
            frames, broken = frames_of(videos, options)
            if not (photos := numbered([*given.photos, *frames], earlier)):
                return 1
            check_formats(options.formats, photos)
            failed += broken
        done = search_photos(options, photos, finish, refuse)
    if options.timing and timings:
        mean = {stage: sum(timing[stage] for timing in timings) / len(timings) for stage in timings[0]}
        print_timing(mean, f"time per photo, mean of {len(timings)}")
    if not options.quiet:
        say(f"{merged_file(options) or options.out}: {len(done)} of {counted(len(photos), 'photo')}")
    if failed:
        tried = counted(len(photos) + len(set(failed) & set(videos)), "photo")
        say(f"{len(failed)} of {tried} failed, first: {failed[0]}", ERR)
    return 1 if failed else 0


def search_photos(
    options: Propose,
    photos: list[SearchedPhoto],
    finish: Callable[[SearchedPhoto, Proposals], Entries],
    refuse: Callable[[SearchedPhoto, DataError], None],
) -> list[SearchedPhoto]:
    """Search the photos and write their results. Returns those that have some."""
    generator, formats = generator_of(options), options.formats
    # Formats of all photos in one file can be written of the parts at any time; the others come with the parts.
    settings = settings_of(generator, options.checkpoint) | {"formats": sorted({*formats} - {"coco", "parquet"})}
    parts = Parts(options.out, settings)
    with searching(generator, len(photos)) as (at_once, search):
        steps = Steps[SearchedPhoto, Entries](
            read=lambda photo: generator.see(photo.path),
            search=lambda _, picture: search(picture),
            finish=finish,
            is_large=lambda photo: is_large(photo.path),
            at_once=at_once,
        )
        merged = merged_file(options)
        done = search_all(photos, parts, steps, refuse, merged=merged, resume=options.resume, quiet=options.quiet)
    if "yolo" in formats:
        write_yolo_classes(options.out)
    if "parquet" in formats:
        parquet.write(options.out / "proposals.parquet", map(parts.entries, done))
    return done


def print_results(options: Propose, photos: list[SearchedPhoto]) -> int:
    """Print the results of one photo as JSON."""
    if len(photos) != 1:
        raise DataError(f"json must have one photo, got {len(photos)}; leave out --json for files of all")
    found = generator_of(options).generate(photos[0].path)
    print(json.dumps(entries_of(photos[0], found)))
    return 0


def generator_of(options: Propose) -> ProposalGenerator:
    model = load_model(options.checkpoint, usable_device(options.search.device))
    return make_generator(
        model, options.search, options.compute, top_n=options.top_n, refine=options.refine, exif=options.exif
    )


def entries_of(photo: SearchedPhoto, found: Proposals) -> Entries:
    """A photo's proposals as entries of COCO results."""
    return [entry | {"file_name": photo.name, "exif": found.exif} for entry in found.to_coco(photo.id)]


def merged_file(options: Propose) -> Path | None:
    """The file of all photos' results, if it is asked for."""
    return options.out / "proposals.json" if "coco" in options.formats else None

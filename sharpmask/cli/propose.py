"""The command ``sharpmask propose``: object masks in photos."""

from __future__ import annotations

from ..checkpoint import load_model
from ..data.photos import Found
from ..errors import DataError
from ..files import output_folder
from ..formats import parquet
from ..search import Proposals
from .formats import check_formats, write_photo, write_yolo_classes
from .options import Propose
from .output import ERR, say
from .overlap import Steps
from .parts import Entries, Parts
from .photo_ids import SearchedPhoto, numbered
from .searching import is_large, search_all
from .shared import check_device, make_generator, print_timing, searching, settings_of


def propose(options: Propose, given: Found) -> int:
    """Find objects on photos. One that cannot be searched is reported and makes the exit status 1."""
    for line in given.passed_over:
        say(line, ERR)
    check_device(options.search.device)
    photos = numbered(given.photos)
    formats = options.formats
    check_formats(formats, photos)
    timings: list[dict[str, float]] = []
    failed: list[SearchedPhoto] = []

    def finish(photo: SearchedPhoto, found: Proposals) -> Entries:
        timings.append(found.timing)
        if options.overlay:
            found.save_overlay((options.out / photo.part).with_suffix(".png"))
        write_photo(found, photo, options.out, formats)
        own = {"file_name": photo.name, "exif": found.exif}
        return [entry | own for entry in found.to_coco(photo.id)]

    def refuse(photo: SearchedPhoto, error: DataError) -> None:
        say(f"sharpmask: {error}", ERR)
        failed.append(photo)

    with output_folder(options.out):
        model = load_model(options.checkpoint, options.search.device)
        generator = make_generator(
            model, options.search, options.compute, top_n=options.top_n, refine=options.refine, exif=options.exif
        )
        # Formats of all photos in one file can be written of the parts at any time; the others come with the parts.
        settings = settings_of(generator, options.checkpoint) | {"formats": sorted({*formats} - {"coco", "parquet"})}
        parts = Parts(options.out, settings)
        merged = options.out / "proposals.json" if "coco" in formats else None
        with searching(generator, len(photos)) as (at_once, search):
            steps = Steps[SearchedPhoto, Entries](
                read=lambda photo: generator.see(photo.path),
                search=lambda _, picture: search(picture),
                finish=finish,
                is_large=lambda photo: is_large(photo.path),
                at_once=at_once,
            )
            done = search_all(photos, parts, steps, refuse, merged=merged, resume=options.resume)
        if "yolo" in formats:
            write_yolo_classes(options.out)
        if "parquet" in formats:
            parquet.write(options.out / "proposals.parquet", map(parts.entries, done))
    if options.timing and timings:
        mean = {stage: sum(timing[stage] for timing in timings) / len(timings) for stage in timings[0]}
        print_timing(mean, f"time per photo, mean of {len(timings)}")
    say(f"{merged or options.out}: {len(done)} of {len(photos)} photos")
    if failed:
        say(f"{len(failed)} of {len(photos)} photos failed, first: {failed[0].path}", ERR)
    return 1 if failed else 0

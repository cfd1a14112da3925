"""The command ``sharpmask propose``: object masks in photos."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.progress import track

from ..checkpoint import load_model
from ..data.photos import Found
from ..errors import DataError
from ..files import write_text
from ..search import Proposals
from .options import Propose
from .output import ERR, say
from .shared import check_device, make_generator, merge_results, print_timing


def propose(options: Propose, given: Found) -> int:
    """Find objects on photos. A photo that cannot be read is reported and makes the exit status 1."""
    for line in given.passed_over:
        say(line, ERR)
    photos = [photo.path for photo in given.photos]
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

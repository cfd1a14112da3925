"""The files that ``propose`` writes beside COCO results."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from ..errors import DataError
from ..files import short_name, write_text
from ..formats.outputs import NAME
from ..packages import needed
from ..search import Proposals
from .photo_ids import SearchedPhoto

PACKAGES: Final = {"labelme": "supervision", "yolo": "supervision", "parquet": "pyarrow"}
"""What formats need that is not always installed."""


def check_formats(formats: Sequence[str], photos: Sequence[SearchedPhoto]) -> None:
    """Raise ``DataError`` where a package is missing, or two photos would have one file."""
    for name in formats:
        if name in PACKAGES:
            # Here, because threads that import it cannot hold back its warning.
            needed(PACKAGES[name], f"format {name}")
    for name in set(formats) & set(NAMED):
        by_file: dict[str, SearchedPhoto] = {}
        for photo in photos:
            other = by_file.setdefault(NAMED[name](photo).lower(), photo)
            if other is not photo:
                raise DataError(
                    f"format {name}: {other.path} and {photo.path} would both be {NAMED[name](photo)}; "
                    "search them in two runs, or rename one"
                )


def labelme_file(photo: SearchedPhoto) -> str:
    return "labelme/" + short_name(f"{photo.path.stem}.json")


def yolo_file(photo: SearchedPhoto) -> str:
    return "yolo/labels/" + short_name(f"{photo.path.stem}.txt")


NAMED: Final[dict[str, Callable[[SearchedPhoto], str]]] = {"labelme": labelme_file, "yolo": yolo_file}
"""Formats whose programs find a photo's file by the photo's name: that file, below the output folder."""


def write_photo(found: Proposals, photo: SearchedPhoto, out: Path, formats: Sequence[str]) -> None:
    """Write a photo's proposals in the formats that have a file, or a folder, a photo."""
    if "labelme" in formats:
        path = out / labelme_file(photo)
        image = os.path.relpath(os.path.abspath(photo.path), os.path.abspath(path.parent))
        write_text(path, json.dumps(found.to_labelme(image)))
    if "yolo" in formats:
        write_text(out / yolo_file(photo), found.to_yolo())
    if "png" in formats:
        found.to_png(out / "png" / Path(photo.part).stem)


def write_yolo_classes(out: Path) -> None:
    """Write the file that says what the numbers of classes in YOLO labels mean."""
    write_text(out / "yolo" / "data.yaml", f"nc: 1\nnames: [{NAME}]\n")

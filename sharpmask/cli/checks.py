"""Checks of the paths among a command's arguments, before anything is imported that takes seconds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import DataError

FILES = {
    "checkpoint": "checkpoint",
    "start_from": "checkpoint",
    "results": "results",
    "annotations": "annotations",
    "validation_annotations": "annotations",
}
"""Options that name a file to read, and what errors call it."""
FOLDERS = ("dataset", "validation")
"""Options that name a folder to read."""


def check_paths(options: Any) -> None:
    """Raise ``DataError`` for a path among the options that is not there, and for an ``out`` that cannot be made."""
    for name, what in FILES.items():
        path = getattr(options, name, None)
        if path is not None and not path.is_file():
            raise DataError(f"{what}: no file {path}")
    for name in FOLDERS:
        path = getattr(options, name, None)
        if path is not None and not path.is_dir():
            raise DataError(f"{name}: {path}: no such folder")
    for path in getattr(options, "images", ()) if isinstance(getattr(options, "images", ()), tuple) else ():
        if not path.exists():
            raise DataError(f"images: no file or folder {path}")
    check_out(options.out)


def check_out(path: Path) -> None:
    """Raise ``DataError`` if ``path``, or the nearest folder above it that exists, cannot be written to."""
    nearest = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
    if nearest != path and not nearest.is_dir():
        raise DataError(f"out: {path} cannot be made, because {nearest} is not a folder")
    if not os.access(nearest, os.W_OK):
        raise DataError(f"out: {path} cannot be written: {nearest} is read-only for this user")

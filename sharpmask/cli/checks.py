"""Checks of the paths among a command's arguments, before anything is imported that takes seconds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..family import checkpoint_path, shipped

FILES = {
    "checkpoint": "checkpoint",
    "start_from": "--from",
    "weights": "weights",
    "results": "results",
    "against": "against",
    "annotations": "annotations",
    "validation_annotations": "validation_annotations",
}
"""Options that name a file to read, and what errors call it."""
CHECKPOINTS = ("checkpoint", "start_from")
"""Those of a checkpoint, which may be a name."""
FOLDERS = ("dataset", "validation", "rank_on")
"""Options that name a folder to read."""


def check_images(paths: Sequence[Path]) -> None:
    """Raise ``DataError`` for a path that is not there."""
    for path in paths:
        if not os.path.lexists(path):
            raise DataError(f"images: no file or folder {path}")


def check_file(path: Path, what: str, hint: str = "") -> None:
    """Raise ``DataError`` that calls a file to read ``what``, if it is not there, with the ``hint``, or a folder."""
    if path.is_dir():
        raise DataError(f"{what}: {path} must be a file, but it is a folder")
    # A FIFO is let through: what reads it refuses it.
    if not path.exists():
        raise DataError(f"{what}: no file {path}{hint}")


def check_inputs(options: Any) -> None:
    """Raise ``DataError`` for a file or folder to read, among the options, that is not there."""
    for name, what in FILES.items():
        for given_path in _paths(options, name):
            if name in CHECKPOINTS:
                check_file(checkpoint_path(given_path, what), what, hint=f"; models by name are {', '.join(shipped())}")
            else:
                check_file(given_path, what)
    weights = getattr(options, "trunk_weights", None)
    if weights not in (None, "imagenet"):
        check_file(Path(weights), "trunk_weights")
    for name in FOLDERS:
        for path in _paths(options, name):
            if path.exists() and not path.is_dir():
                raise DataError(f"{name}: {path} must be a folder, but it is a file")
            if not path.is_dir():
                raise DataError(f"{name}: {path}: no such folder")


def _paths(options: Any, name: str) -> tuple[Path, ...]:
    """The paths that an option gives, without the weights of data sets."""
    if name == "dataset" and hasattr(options, "data_sets"):
        return tuple(data.folder for data in options.data_sets())
    value = vars(options).get(name)
    return value if isinstance(value, tuple) else () if value is None else (value,)


def check_out(path: Path, *, is_file: bool) -> None:
    """Raise ``DataError`` if ``path`` is there and of the wrong kind, or cannot be made or written to."""
    if is_file and path.is_dir():
        raise DataError(f"out: {path} must be a file, but it is a folder")
    if not is_file and os.path.lexists(path) and not path.is_dir():
        raise DataError(f"out: {path} must be a folder, but it is a file")
    above = path.absolute().parents if is_file else (path, *path.absolute().parents)
    nearest = next(place for place in above if os.path.lexists(place))
    if not nearest.is_dir():
        raise DataError(f"out: {path} cannot be made, because {nearest} is not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise DataError(f"out: {path} cannot be written, because {nearest} is not writable")

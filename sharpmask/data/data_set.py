"""Data sets as settings name them. Without PyTorch: a command line is checked before that is loaded."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import DataError

_WEIGHT = re.compile(r"(.+):((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)", re.DOTALL)
MOST = 1_000_000
"""The largest weight."""


class DataSet(NamedTuple):
    """A data set, and how often it is drawn, relative to the others."""

    folder: Path
    annotations: Path | None
    """The annotation file, if it is not in a standard place."""
    weight: float


def data_sets(named: Sequence[Path], annotations: Sequence[Path]) -> tuple[DataSet, ...]:
    """The data sets of texts such as ``folder`` and ``folder:0.3``, with an annotation file for each, or none.

    Only a number after the last colon is a weight; without one it is 1. Raises ``DataError`` for a weight of 0, for
    what is no number after the name of a folder, and if the annotation files are not as many as the data sets.
    """
    if annotations and len(annotations) != len(named):
        raise DataError(
            f"annotations must be one file for each data set, or none, got {len(annotations)} for {len(named)}"
        )
    files: Sequence[Path | None] = annotations or [None] * len(named)
    return tuple(_data_set(name, file) for name, file in zip(named, files, strict=True))


def _data_set(name: Path, annotations: Path | None) -> DataSet:
    match = _WEIGHT.fullmatch(str(name))
    folder, colon, _ = str(name).rpartition(":")
    if match is None and not (colon and Path(folder).is_dir() and not name.exists()):
        return DataSet(name, annotations, 1.0)
    weight = float(match[2]) if match else math.nan
    if not 0 < weight <= MOST:
        raise DataError(f"dataset: the weight must be a number above 0 and at most {MOST}, got {name}")
    if name.is_dir() and not Path(folder).is_dir():
        raise DataError(f"dataset: {folder}: no such folder; for the folder {name}, give its weight, too: {name}:1")
    return DataSet(Path(folder), annotations, weight)

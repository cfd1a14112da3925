"""Results in the form of the history (:mod:`bench.record`), in a file of their own."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..record import Recorder, Row, append, read
from .contenders import OURS
from .results import Results
from .tables import ratios


def check(path: Path) -> None:
    """Raise :class:`bench.record.WrongHeader` for a file with other columns, before anything is measured."""
    read(path)


def add(path: Path, results: Results) -> None:
    append(path, rows(path, results))


def rows(path: Path, results: Results) -> Iterator[Row]:
    """One row for each setting and contender beside ours."""
    recorder = Recorder(path, Namespace(dtype="fp32", device="cpu"))
    height, width = results.size
    for own in results.measured:
        if own.name != OURS:
            continue
        for other in results.find(own.model, own.threads, own.count):
            if other is not own:
                yield recorder.row(
                    threads=str(own.threads),
                    op="photo",
                    shape=f"{own.model}-{own.count}-{height}x{width}",
                    mode="forward",
                    backend=own.name,
                    seconds=f"{own.median:.4g}",
                    peer=other.name,
                    ratio=f"{np.median(ratios(other, own)):.4g}",
                )

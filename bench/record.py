"""The history of measurements: a CSV file that ``python -m bench.compare --record`` appends to."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from sharpmask.files import write_text

from . import machine
from .comparison import Comparison

HISTORY = Path(__file__).parent / "history" / "history.csv"


class Row(NamedTuple):
    """One row for each op, shape and peer. The fields are the file's columns."""

    commit: str
    date: str
    machine: str
    isa: str
    threads: str
    torch: str
    op: str
    shape: str
    mode: str
    """forward, training, or training-frozen: with gradients of everything but the features."""
    dtype: str
    device: str
    backend: str
    """Our fastest backend, with "-nhwc" where it was faster with channels_last inputs."""
    seconds: str
    """The backend's median time."""
    peer: str
    ratio: str
    """The median of the peer's time divided by the backend's. 2 means that the peer takes twice as long."""


class WrongHeader(ValueError):
    """A history has other columns than this version writes."""


class Recorder:
    """Appends comparisons to the history. Whatever is the same for a whole run is read once, when it starts."""

    def __init__(self, path: Path, options: Namespace) -> None:
        self.path, self.options = path, options
        self.commit, self.torch = machine.commit(), torch.__version__
        self.date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.machine, self.isa = machine.processor(torch.device(options.device))
        read(path)  # a file with other columns is refused before anything is measured

    def add(self, *comparisons: Comparison) -> None:
        append(self.path, (row for comparison in comparisons for row in self.rows(comparison)))

    def rows(self, comparison: Comparison) -> Iterator[Row]:
        if not comparison.backends:
            return
        workload, backend = comparison.workload, comparison.fastest
        for peer, ratios in comparison.ranked().items():
            yield self.row(
                threads=str(torch.get_num_threads()),
                op=workload.op,
                shape=workload.shape,
                mode=workload.mode,
                backend=backend,
                seconds=f"{np.median(comparison.times[backend]):.4g}",
                peer=peer,
                ratio=f"{np.median(ratios):.4g}",
            )

    def row(self, **fields: str) -> Row:
        """A row with these fields; the others are the same for the whole run."""
        return Row(
            commit=self.commit,
            date=self.date,
            machine=self.machine,
            isa=self.isa,
            torch=self.torch,
            dtype=self.options.dtype,
            device=self.options.device,
            **fields,
        )


def read(path: Path) -> list[Row]:
    """The rows of a history, none where there is no file yet. Raises :class:`WrongHeader`."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    header = rows[0] if rows else []
    if tuple(header) != Row._fields:
        raise WrongHeader(f"{path}: the header must be {','.join(Row._fields)}, got {','.join(header)}")
    return [Row(*row) for row in rows[1:]]


def append(path: Path, rows: Iterable[Row]) -> None:
    """Writes the file anew with ``rows`` at its end, so that a reader never sees half a row."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([Row._fields, *read(path), *rows])
    write_text(path, text.getvalue())

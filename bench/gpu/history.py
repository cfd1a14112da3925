"""What a report has measured, as rows of the history."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from .. import record
from ..record import Row
from . import measure

WORK = ("op", "shape", "mode", "dtype")


def add(path: Path, report: Path) -> int:
    """Appends the rows of a report.json to a history. Returns how many. Raises ``WrongHeader``."""
    rows = list(rows_of(report))
    record.append(path, rows)
    return len(rows)


def rows_of(report: Path) -> Iterator[Row]:
    """A row for each workload and peer: ratios of times with warm caches, in the same step."""
    found = json.loads(report.read_text(encoding="utf-8"))
    head, steps = found["head"], found["stages"].get(measure.NAME, {})
    machine, _, isa = head["device"].rpartition(", ")
    for step in steps.values():
        for work, group in itertools.groupby(step["rows"], lambda row: tuple(row[name] for name in WORK)):
            rows = list(group)
            ours = min((row for row in rows if row["ours"]), key=lambda row: row["warm"], default=None)
            if ours is None:
                continue
            for peer in (row for row in rows if not row["ours"]):
                yield Row(
                    commit=head["commit"],
                    date=head["date"],
                    machine=machine,
                    isa=isa,
                    threads="1",
                    torch=head["torch"].partition(",")[0],
                    **dict(zip(WORK, work, strict=True)),
                    device="cuda",
                    backend=ours["who"],
                    seconds=f"{ours['warm']:.4g}",
                    peer=peer["who"],
                    ratio=f"{peer['warm'] / ours['warm']:.4g}",
                )

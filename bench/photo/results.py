"""What was measured, as it is kept in a file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from sharpmask.files import write_text


def threads_of(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


@dataclass
class Measured:
    """One contender on one model, with some threads and windows."""

    model: str
    threads: int
    count: int
    """Windows to refine; for Segment Anything, points."""
    name: str
    group: str
    seconds: list[float] = field(default_factory=list)
    """One for each round."""
    peak: int | None = None
    """Bytes beyond the loaded model at the peak; None where the system does not tell."""

    stages: dict[str, float] = field(default_factory=dict)
    """Seconds of each stage of a search, in the last round."""

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))


@dataclass
class Many:
    """Photos a second by one way to search a folder."""

    name: str
    photos: int
    rates: list[float] = field(default_factory=list)
    """One for each round."""


@dataclass
class Results:
    head: dict[str, str]
    """Machine, versions and commit."""
    size: tuple[int, int]
    """(h, w) of the photo."""
    notes: list[str] = field(default_factory=list)
    """Who was left out, and why."""
    measured: list[Measured] = field(default_factory=list)
    many: list[Many] = field(default_factory=list)

    def find(self, model: str, threads: int, count: int) -> list[Measured]:
        """Everyone in one setting."""
        return [m for m in self.measured if (m.model, m.threads, m.count) == (model, threads, count)]

    def settings(self) -> list[tuple[str, int]]:
        """Models and threads, in order."""
        return list(dict.fromkeys((m.model, m.threads) for m in self.measured))

    def write(self, path: Path) -> None:
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    def add(self, other: Results) -> None:
        """Takes over what another run has measured."""
        self.notes += other.notes
        self.measured += other.measured
        self.many += other.many

    @classmethod
    def read(cls, path: Path) -> Results:
        text = json.loads(path.read_text())
        measured = [Measured(**row) for row in text["measured"]]
        many = [Many(**row) for row in text["many"]]
        return cls(text["head"], tuple(text["size"]), text["notes"], measured, many)

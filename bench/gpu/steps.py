"""What a run is made of: stages of steps, and what comes of a step. All of it is data; run.py runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Status = Literal["ok", "failed", "stopped", "left out"]
"""``stopped``: it took too long. ``left out``: it was not begun. A later run takes these two up again."""

NAMES = ("prove", "sanitize", "measure", "photo", "tune")
"""Of the stages, in the order in which they run."""

FINISHED: tuple[Status, ...] = ("ok", "failed")

Row = dict[str, Any]


class Result(NamedTuple):
    """What came of a step."""

    status: Status
    said: str = ""
    """In a line."""
    rows: Sequence[Row] = ()
    seconds: float = 0.0
    output: str = ""
    """The end of what it printed."""


@dataclass(frozen=True)
class Step:
    """A process of its own (``command``), or a question to the process that a stage keeps (``question``)."""

    name: str
    seconds: float
    """That it takes at most: after that it is stopped."""
    command: tuple[str, ...] = ()
    """What is run; Python's own arguments if ``program`` is empty."""
    program: tuple[str, ...] = ()
    """What Python runs under."""
    environment: Mapping[str, str] = field(default_factory=dict)
    question: Mapping[str, Any] = field(default_factory=dict)
    """For :mod:`bench.gpu.worker`."""
    obstacle: str | None = None
    """Why it cannot be run here."""


class Plan(NamedTuple):
    """How a run is to be done."""

    rehearse: bool
    """On the CPU, at tiny sizes."""
    folder: str
    """For what is kept beside the report."""


class Stage(NamedTuple):
    name: str
    about: str
    share: float
    """Of the time of a run, beside the other stages' shares."""
    steps: Callable[[Plan], list[Step]]
    judge: Callable[[int, str], Result]
    """What came of a process, from its exit status and what it printed."""
    tables: Callable[[list[Row]], dict[str, list[list[str]]]]
    """Of all rows of a stage, by title, the first row of each its header."""
    at_once: int = 1
    """Processes that run side by side."""


def judged(status: int, output: str) -> Result:
    """Any program: its exit status, and its last line."""
    lines = output.strip().splitlines() or [f"exit status {status}"]
    return Result("ok" if status == 0 else "failed", lines[-1])


def no_tables(rows: list[Row]) -> dict[str, list[list[str]]]:
    return {}

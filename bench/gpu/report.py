"""The report: report.json, from which a later run goes on, and report.md, written anew after every step."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sharpmask.files import write_text

from ..pages import markdown
from .steps import FINISHED, Result, Stage

SAME = ("commit", "sources", "device", "torch", "triton", "rehearsal")
"""What must agree for a run to go on where an earlier one stopped."""

MOST_OUTPUT = 4000
"""Characters of a step's output that are kept, from its end."""


class Report:
    """What has come of the steps so far, by stage and step."""

    def __init__(self, folder: Path, head: dict[str, str], stages: Iterable[Stage]) -> None:
        self.json, self.markdown = folder / "report.json", folder / "report.md"
        self.head, self.stages = head, list(stages)
        self.results: dict[str, dict[str, Result]] = {}
        self.notes: list[str] = []
        self._lock = threading.Lock()
        self._read()

    def _read(self) -> None:
        """Takes over what an earlier run has found. A report of other sources or another GPU is moved aside."""
        if not self.json.exists():
            return
        kept = json.loads(self.json.read_text(encoding="utf-8"))
        if any(kept["head"].get(name) != self.head.get(name) for name in SAME):
            for path in (self.json, self.markdown):
                if path.exists():
                    path.rename(path.with_name(f"{path.stem}-{time.strftime('%Y%m%d-%H%M%S')}{path.suffix}"))
            return
        self.results = {
            stage: {step: Result(**result) for step, result in steps.items()} for stage, steps in kept["stages"].items()
        }

    def forget(self, stage: str) -> None:
        self.results.pop(stage, None)

    def finished(self, stage: str, step: str) -> bool:
        found = self.results.get(stage, {}).get(step)
        return found is not None and found.status in FINISHED

    def add(self, stage: str, step: str, result: Result) -> None:
        with self._lock:
            self.results.setdefault(stage, {})[step] = result._replace(output=result.output[-MOST_OUTPUT:])
            self.write()

    def write(self) -> None:
        results = {stage: {step: r._asdict() for step, r in steps.items()} for stage, steps in self.results.items()}
        found: dict[str, Any] = {"head": self.head, "stages": results, "notes": self.notes}
        write_text(self.json, json.dumps(found, indent=1) + "\n")
        write_text(self.markdown, "\n\n".join(self._text()) + "\n")

    def _text(self) -> Iterable[str]:
        yield "# Report of `python -m bench.gpu`"
        yield markdown([["", ""], *([name, cell(value)] for name, value in self.head.items())])
        yield from self.notes
        for stage in self.stages:
            if steps := self.results.get(stage.name):
                yield f"## {stage.name}: {stage.about}"
                yield summary(steps)
                for title, rows in stage.tables([row for r in steps.values() for row in r.rows]).items():
                    yield f"### {title}"
                    yield markdown(rows)
                yield "### Steps"
                yield markdown([["step", "", "s", "said"], *(self._row(*item) for item in steps.items())])
                yield from (self._output(*item) for item in steps.items() if item[1].status in ("failed", "stopped"))

    def _row(self, name: str, result: Result) -> list[str]:
        return [name, result.status, f"{result.seconds:.1f}", cell(result.said)]

    def _output(self, name: str, result: Result) -> str:
        return f"### {name}: {result.status}\n\n````\n{result.output.strip()}\n````"

    def failed(self) -> list[str]:
        """Stage and step of all that failed or was stopped."""
        return [
            f"{stage}: {step}"
            for stage, steps in self.results.items()
            for step, result in steps.items()
            if result.status in ("failed", "stopped")
        ]


def summary(steps: dict[str, Result]) -> str:
    """How many steps came out how, and how long they took."""
    counts: dict[str, int] = {}
    for result in steps.values():
        counts[result.status] = counts.get(result.status, 0) + 1
    told = ", ".join(f"{count} {status}" for status, count in counts.items())
    return f"{told}; {sum(result.seconds for result in steps.values()):.0f} s of work."


def cell(text: str) -> str:
    """A text that keeps to its cell."""
    return " ".join(text.replace("|", "\\|").split())

"""The parent's side of a contender."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .. import process
from ..process import ROOT, Failed

__all__ = ["ROOT", "Failed", "Process"]


class Process(process.Process):
    """A contender in a process of its own, so that its threads, memory and version of the package are its own.

    ``task`` is what :mod:`bench.photo.worker` reads. Raises :class:`Failed` if it cannot be made ready.
    """

    def __init__(self, task: dict[str, Any], log: Path) -> None:
        # What one contender compiles or caches may be read by the next run, but only by contenders of this checkout.
        environment = {"OMP_NUM_THREADS": str(task["threads"]), "PYTHONPATH": ""}
        super().__init__(["bench.photo.worker", json.dumps(task)], log, environment)

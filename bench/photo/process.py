"""The parent's side of a contender: a process of its own that answers questions, one JSON line each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[2]


class Failed(RuntimeError):
    """A contender cannot run here, for the reason that this says."""


class Process:
    """A contender in a process of its own, so that its threads, memory and version of the package are its own.

    ``task`` is what :func:`bench.photo.worker.main` reads. Raises :class:`Failed` if it cannot be made ready.
    """

    def __init__(self, task: dict[str, Any], log: Path) -> None:
        self.log, threads = log, str(task["threads"])
        # What one contender compiles or caches may be read by the next run, but only by contenders of this checkout.
        environment = os.environ | {"OMP_NUM_THREADS": threads, "PYTHONPATH": "", "TQDM_DISABLE": "1"}
        command = [sys.executable, "-W", "ignore", "-m", "bench.photo.worker", json.dumps(task)]
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        try:
            self.read()
        except BaseException:
            self.close()
            raise

    def ask(self, **question: Any) -> dict[str, Any]:
        """The answer to a question. Raises :class:`Failed` if the contender failed or ended."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the log says why it ended
        return self.read()

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            said = self.log.read_text(errors="replace").strip().splitlines() or ["nothing was said"]
            raise Failed(f"its process ended: {said[-1]}")
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise Failed(answer["failed"])
        return answer

    def close(self) -> None:
        """Ends the process."""
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

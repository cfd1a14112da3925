"""A process of its own that answers questions, one JSON line each: the asker's side, and its own."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO, TypeVar

ROOT = Path(__file__).parents[1]

Answer = dict[str, Any]
P = TypeVar("P", bound="Process")


class Failed(RuntimeError):
    """A process cannot do what is asked of it, for the reason that this says."""


class Process:
    """``python -m MODULE ...``, which calls :func:`serve`. What it prints besides goes to the file ``log``.

    Raises :class:`Failed` if it cannot be made ready, or takes more than ``patience`` seconds for it.
    """

    def __init__(
        self, module: Sequence[str], log: Path, environment: Mapping[str, str], patience: float | None = None
    ) -> None:
        self.log = log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", *module],
                cwd=ROOT,
                env={**os.environ, "TQDM_DISABLE": "1", **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        try:
            self.read(patience)
        except BaseException:
            self.close()
            raise

    def ask(self, patience: float | None = None, **question: Any) -> Answer:
        """The answer to a question. Raises :class:`Failed` if the process failed, ended, or took longer."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the log says why it ended
        return self.read(patience)

    def read(self, patience: float | None) -> Answer:
        assert self.process.stdout is not None
        # Every question has one line for an answer, so none is in the buffer yet.
        if patience is not None and not select.select([self.process.stdout], [], [], patience)[0]:
            self.process.kill()
            raise TimeoutError(f"it took more than {patience:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            said = self.log.read_text(errors="replace").strip().splitlines() or ["nothing was said"]
            raise Failed(f"its process ended: {said[-1]}")
        answer: Answer = json.loads(line)
        if "failed" in answer:
            raise Failed(answer["failed"])
        return answer

    def close(self) -> None:
        """Ends the process."""
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):  # of a question that an ended process did not read
                pipe.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        with contextlib.suppress(ProcessLookupError):  # what it has started and not ended
            os.killpg(self.process.pid, signal.SIGKILL)

    def __enter__(self: P) -> P:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def serve(ready: Callable[[], object]) -> None:
    """Makes ready and answers questions until they end: ``{"what": METHOD, ...}`` calls a method of what is ready."""
    # Libraries print; only answers go to the asker.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    found: object = None

    def prepare() -> Answer:
        nonlocal found
        found = ready()
        return {}

    _reply(answers, prepare)
    for line in sys.stdin:
        question = json.loads(line)
        method = getattr(found, question.pop("what"))
        _reply(answers, lambda method=method, question=question: method(**question))  # type: ignore[misc]


def _reply(answers: TextIO, work: Callable[[], Answer]) -> None:
    """The answer that ``work`` gives, or why it fails, as one line."""
    try:
        answer = work()
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        answer = {"failed": (str(error).strip() or type(error).__name__).splitlines()[0]}
    answers.write(json.dumps(answer) + "\n")
    answers.flush()

"""Runs the steps of the stages until the time is up, and notes what comes of each."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from ..process import ROOT, Failed, Process
from .report import Report
from .steps import Plan, Result, Stage, Step

START = 60.0
"""Seconds that a stage's own process may take to be ready."""

LEAST = 15.0
"""Seconds that must be left for a step that may take longer to be begun. When the stage's time is up, it ends."""

GRACE = 10.0
"""Seconds that an interrupted process has for its last words: pytest then tells what it has found so far."""

INTERPRETED = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
"""The environment of a rehearsal."""


class Clock(NamedTuple):
    """When a run and each of its stages have to end."""

    end: float

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def share(self, stage: Stage, later: list[Stage]) -> Clock:
        """The clock of a stage: its share of what is left for it and the ``later`` ones."""
        part = stage.share / sum(s.share for s in (stage, *later))
        return Clock(time.monotonic() + part * max(0.0, self.left))


class Runner:
    """Runs the steps of one stage."""

    def __init__(self, stage: Stage, plan: Plan, clock: Clock, report: Report) -> None:
        self.stage, self.plan, self.clock, self.report = stage, plan, clock, report
        self.environment = INTERPRETED if plan.rehearse else {}
        self.process: Process | None = None
        self.running: set[subprocess.Popen[str]] = set()
        self.ended = False

    def run(self) -> None:
        """Runs the steps in their order: those with processes of their own side by side, questions one by one."""
        steps = [step for step in self.stage.steps(self.plan) if not self.report.finished(self.stage.name, step.name)]
        try:
            for asked, together in itertools.groupby(steps, key=lambda step: bool(step.question)):
                with ThreadPoolExecutor(1 if asked else self.stage.at_once) as pool:
                    self._all(pool, [*together])
        finally:
            self.close()

    def _all(self, pool: ThreadPoolExecutor, steps: list[Step]) -> None:
        try:
            list(pool.map(self.step, steps))
        except BaseException:  # such as Ctrl-C: nothing that was started may stay on the GPU
            self.ended = True
            for process in [*self.running]:
                end(process)
            if self.process is not None:
                end(self.process.process)
            raise

    def step(self, step: Step) -> None:
        left = self.clock.left
        if step.obstacle:
            result = Result("left out", step.obstacle)
        elif left < min(step.seconds, LEAST):
            result = Result("left out", f"the time was up: it may take {step.seconds:.0f} s")
        else:
            start = time.monotonic()
            patience = min(step.seconds, left)
            found = self.answer(step) if step.question else self.command(step, patience)
            if found.status == "stopped" and self.clock.left <= 0:
                found = found._replace(status="left out", said=f"the time was up: {found.said}")
            result = found._replace(seconds=round(time.monotonic() - start, 2))
        if self.ended:
            return  # what came of it is not the step's fault
        self.report.add(self.stage.name, step.name, result)
        say(f"{self.stage.name}: {step.name}: {result.status}, {result.seconds:.1f} s, {result.said}")

    def command(self, step: Step, patience: float) -> Result:
        """A process of its own. When its time is up it is interrupted, and ended if that does not help."""
        process = subprocess.Popen(
            [*step.program, sys.executable, *step.command],
            cwd=ROOT,
            env={**os.environ, **step.environment, **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.running.add(process)
        try:
            output, _ = process.communicate(timeout=patience)
            return self.stage.judge(process.returncode, output)._replace(output=output)
        except subprocess.TimeoutExpired:
            output = last_words(process)
            found = self.stage.judge(process.returncode, output)
            return Result("stopped", f"it took more than {patience:.0f} s; {found.said}", found.rows, output=output)
        finally:
            end(process)
            self.running.remove(process)

    def answer(self, step: Step) -> Result:
        """What the stage's own process answers. One that failed gives way to a new one for the next question."""
        try:
            if self.process is None:
                self.process = self.start(min(START, self.clock.left))
            patience = max(1.0, min(step.seconds, self.clock.left))
            found = self.process.ask(patience, **step.question)
            if found.get("status") == "failed":
                self.close()  # an error on the device would spoil what follows
            return Result(found.get("status", "ok"), found["said"], found["rows"])
        except (Failed, TimeoutError) as reason:
            self.close()
            output = self.log.read_text(errors="replace") if self.log.exists() else ""
            return Result("failed" if isinstance(reason, Failed) else "stopped", str(reason), output=output)

    @property
    def log(self) -> Path:
        return Path(self.plan.folder) / f"{self.stage.name}.log"

    def start(self, patience: float) -> Process:
        given = [self.stage.name, self.plan.folder, *(["--rehearse"] if self.plan.rehearse else [])]
        return Process(["bench.gpu.worker", *given], self.log, self.environment, patience)

    def close(self) -> None:
        if self.process is not None:
            self.process.close()
        self.process = None


def last_words(process: subprocess.Popen[str]) -> str:
    """Interrupts a process, ends it if it goes on, and returns all that it printed."""
    process.send_signal(signal.SIGINT)
    try:
        output, _ = process.communicate(timeout=GRACE)
    except subprocess.TimeoutExpired:
        end(process)
        output, _ = process.communicate()
    return output


def end(process: subprocess.Popen[str]) -> None:
    """Ends a process and those that it has started: all of its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def say(text: str) -> None:
    """Progress."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)

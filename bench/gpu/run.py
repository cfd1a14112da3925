"""Runs the steps of the stages until the time is up, and notes what comes of each."""

from __future__ import annotations

import contextlib
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

    def run(self) -> None:
        steps = [step for step in self.stage.steps(self.plan) if not self.report.finished(self.stage.name, step.name)]
        apart, asked = [s for s in steps if not s.question], [s for s in steps if s.question]
        with ThreadPoolExecutor(self.stage.at_once) as pool:
            list(pool.map(self.step, apart))
        try:
            for step in asked:
                self.step(step)
        finally:
            self.close()

    def step(self, step: Step) -> None:
        if step.obstacle:
            result = Result("left out", step.obstacle)
        elif self.clock.left < step.seconds:
            result = Result("left out", f"the time was up: it may take {step.seconds:.0f} s")
        else:
            start = time.monotonic()
            found = self.answer(step) if step.question else self.command(step)
            result = found._replace(seconds=round(time.monotonic() - start, 2))
        self.report.add(self.stage.name, step.name, result)
        say(f"{self.stage.name}: {step.name}: {result.status}, {result.seconds:.1f} s, {result.said}")

    def command(self, step: Step) -> Result:
        """A process of its own, ended when its time is up."""
        process = subprocess.Popen(
            [*step.program, sys.executable, *step.command],
            cwd=ROOT,
            env={**os.environ, **self.environment, **step.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=step.seconds)
        except subprocess.TimeoutExpired:
            end(process)
            output, _ = process.communicate()
            return Result("stopped", f"it took more than {step.seconds:.0f} s", output=output)
        except BaseException:
            end(process)
            raise
        return self.stage.judge(process.returncode, output)._replace(output=output)

    def answer(self, step: Step) -> Result:
        """What the stage's own process answers. One that failed gives way to a new one for the next question."""
        try:
            if self.process is None:
                self.process = self.start()
            found = self.process.ask(step.seconds, **step.question)
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

    def start(self) -> Process:
        given = [self.stage.name, self.plan.folder, *(["--rehearse"] if self.plan.rehearse else [])]
        return Process(["bench.gpu.worker", *given], self.log, self.environment, START)

    def close(self) -> None:
        if self.process is not None:
            self.process.close()
        self.process = None


def end(process: subprocess.Popen[str]) -> None:
    """Ends a process and those that it has started: all of its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def say(text: str) -> None:
    """Progress."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)

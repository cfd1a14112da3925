"""Stage tune: the fastest configurations of the Triton kernels, op by op, into OUT/tuning/ARCHITECTURE.json.

An op is run with each candidate of each of its kernels in turn, while the others keep their best so far. Candidates
that spill registers, or need more shared memory than other GPUs have, are left out; the result with the winners is
checked. What a file of OUT has is kept. To ship it, put it into sharpmask_kernels/backends/triton/tuning.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from sharpmask.files import write_text
from sharpmask_kernels.backends.triton import tuning
from sharpmask_kernels.backends.triton.tuning import Config, Shape, Table
from sharpmask_kernels.verdicts import version

from .. import machine
from ..measure import DTYPES, Setting
from ..peers import Contestant, prepare_op
from ..workloads import Workload
from ..workloads.tiny import tiny
from . import clock, measure
from .steps import Plan, Row, Step

CANDIDATES = [Config(*c) for c in itertools.product((64, 128, 256), (4, 8), (2, 3, 4))]
REHEARSED = [Config(64, 4, 2), Config(128, 4, 2)]
SECONDS = 45.0
"""For the kernels of an op that no op before has tuned."""
GAIN = 0.98
"""A candidate must take no more than this share of the time of the best so far: less is noise."""

Key = tuple[str, Shape]
OPS = ("merge_upsample", "refine", "add_upsample", "upsample_merge", "horizontal")
"""With kernels that have configurations."""


def steps(plan: Plan) -> list[Step]:
    if plan.rehearse:
        return [_step(tiny()["merge_upsample"], "fp32")]
    every = [w for w in measure.every_workload() if w.op in OPS]
    order = sorted(every, key=lambda w: not measure.is_headline(w))
    return [_step(workload, dtype) for dtype in ("fp16", "fp32") for workload in order]


def _step(workload: Workload, dtype: str) -> Step:
    question = {"what": "search", "name": workload.name, "dtype": dtype}
    return Step(f"{workload.name} {dtype}", SECONDS + 15, question=question)


class Answers:
    """What the stage's process answers: the best configurations of the kernels of one workload in one dtype."""

    def __init__(self, folder: Path, rehearse: bool) -> None:
        self.device = torch.device("cpu" if rehearse else "cuda", *([] if rehearse else [0]))
        self.name = tuning.architecture(self.device) or "interpreted"
        self.file = folder / "tuning" / f"{self.name}.json"
        self.found: dict[Key, Config] = dict(tuning.read(self.file)) if self.file.exists() else {}
        self.measured: set[Key] = set()
        self.candidates = REHEARSED if rehearse else CANDIDATES
        self.workloads = measure.by_name(rehearse)
        self.pool = None if rehearse else ProcessPoolExecutor(workers(), multiprocessing.get_context("spawn"))

    def search(self, name: str, dtype: str) -> dict[str, Any]:
        end = time.monotonic() + SECONDS
        workload, setting = self.workloads[name], Setting(self.workloads[name], DTYPES[dtype], self.device)
        run = runner(setting)
        with tuning.force(self.found):
            run()
            keys = [key for key in tuning.asked() if key not in self.measured]
        rows = []
        for i, key in enumerate(keys):
            if (left := end - time.monotonic()) < 0:
                break
            rows.append(self.best_of(key, workload, dtype, run, time.monotonic() + left / (len(keys) - i)))
            with tuning.force(self.found):
                runner(setting)  # which checks the result
            self.write()  # the process may be ended before it has them all
        return {"said": f"{len(rows)} kernels, {sum(row['tried'] for row in rows)} candidates", "rows": rows}

    def best_of(self, key: Key, workload: Workload, dtype: str, run: clock.Run, end: float) -> Row:
        """Times candidates for a kernel and class of shapes until ``end``, the likeliest first, and keeps the best."""
        first = self.found.get(key) or tuning.look_up(*key, tuning.architecture(self.device))
        others = sorted((c for c in self.candidates if c != first), key=lambda c: distance(c, first))
        self.prepare(key, others, workload, dtype)
        was = now = self.seconds(key, first, run)
        best, tried = first, 1
        for candidate in others:
            if time.monotonic() > end:
                break
            tried += 1
            try:
                seconds = self.seconds(key, candidate, run)
            except Unfit:
                continue
            if seconds < GAIN * now:
                best, now = candidate, seconds
        self.found[key] = best
        self.measured.add(key)
        kernel, shape = key
        return {
            "kernel": kernel,
            **shape._asdict(),
            "op": workload.name,
            "was": list(first),
            "best": list(best),
            "times": was / now,
            "tried": tried,
        }

    def prepare(self, key: Key, candidates: list[Config], workload: Workload, dtype: str) -> None:
        """Compiles the candidates side by side, into Triton's cache on disk."""
        if self.pool is None:
            return
        work = [(workload.name, dtype, list({**self.found, key: candidate}.items())) for candidate in candidates]
        list(self.pool.map(compiled, work))

    def seconds(self, key: Key, config: Config, run: clock.Run) -> float:
        """Of the whole op. Raises :class:`Unfit` if the kernel cannot have this configuration."""
        with tuning.force({**self.found, key: config}), kernels(key[0]) as seen:
            try:
                run()
            except Exception as problem:
                if "out of resource" not in str(problem):
                    raise
                raise Unfit from problem
            if any(getattr(kernel, "n_spills", 0) or kernel.metadata.shared > tuning.MOST_SHARED for kernel in seen):
                raise Unfit
            return clock.warm(run, self.device)

    def write(self) -> None:
        shipped: Table = tuning.tables().get(self.name, {})
        about = (
            f"{len(self.found)} of the entries were measured on {machine.processor(self.device)[0]} "
            f"(torch {torch.__version__}, triton {version('triton')}, {time.strftime('%Y-%m-%d')})"
        )
        write_text(self.file, tuning.text({**shipped, **self.found}, about))


class Unfit(Exception):
    """A configuration that a kernel cannot have."""


def workers() -> int:
    return max(1, min(12, (os.cpu_count() or 1) - 2))


def compiled(work: tuple[str, str, list[tuple[Key, Config]]]) -> None:
    """Runs a workload once with these configurations: what it compiles is then in the cache."""
    name, dtype, choices = work
    with tuning.force(dict(choices)), contextlib.suppress(Exception):  # what fails will fail when it is timed
        once(name, dtype)()


def once(name: str, dtype: str) -> clock.Run:
    if (name, dtype) not in _ready:
        _ready.clear()
        workload = measure.by_name(rehearse=False)[name]
        _ready[name, dtype] = runner(Setting(workload, DTYPES[dtype], torch.device("cuda", 0)))
    return _ready[name, dtype]


_ready: dict[tuple[str, str], clock.Run] = {}


def runner(setting: Setting) -> clock.Run:
    """The op on backend triton, on channels_last maps. Raises ``WrongResult``."""
    ours = Contestant("triton", prepare_op("triton"), channels_last=True, backend="triton")
    return setting.runner(ours, wait=False)


@contextlib.contextmanager
def kernels(name: str) -> Iterator[list[Any]]:
    """The compiled kernels of this name that are launched meanwhile."""
    from triton.runtime.jit import JITFunction

    launch, seen = JITFunction.run, []

    def noting(self: Any, *arguments: Any, **options: Any) -> Any:
        kernel = launch(self, *arguments, **options)
        if f"{self.fn.__module__.rpartition('.')[2]}.{self.fn.__name__}" == name:
            seen.append(kernel)
        return kernel

    with mock.patch.object(JITFunction, "run", noting):
        yield seen


def distance(a: Config, b: Config) -> float:
    """How unlike two configurations are."""
    return sum(abs(math.log2(x / y)) for x, y in zip(a, b, strict=True))


def tables(rows: list[Row]) -> dict[str, list[list[str]]]:
    head = ["kernel", "bits", "inputs", "outputs", "before", "best", "op that many times as fast", "tried", "op"]
    names = ("kernel", "bits", "inputs", "outputs", "was", "best", "times", "tried", "op")
    lines = [[f"{row[n]:.2f}" if n == "times" else str(row[n]) for n in names] for row in rows]
    return {"pixels, warps, stages": [head, *lines]} if rows else {}

"""``python -m bench.gpu.compiling DTYPE NAME... [--rehearse]``: runs workloads once on backend triton.

What Triton compiles for them is then in its cache, where the process that measures finds it. Many of these run side by
side; one process alone would compile for minutes.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Iterable, Iterator

import torch

from sharpmask_kernels import registry

from ..measure import DTYPES, Setting, WrongResult
from ..workloads import LEVELS, Workload, refinement
from .steps import Step

AT_ONCE = max(1, min(14, (os.cpu_count() or 1) - 2))
SECONDS = 90.0

REHEARSE = "--rehearse"


def steps(works: Iterable[Workload], dtypes: Iterable[str], *extra: str) -> Iterator[Step]:
    """A process for each op, shape and dtype, with all its modes."""
    groups: dict[tuple[str, str], dict[str, None]] = {}
    for work in works:
        if registry.backend("triton").has(work.op):
            groups.setdefault((work.op, work.shape), {})[work.name] = None
    for dtype, ((op, shape), names) in itertools.product(dtypes, groups.items()):
        command = ("-m", __name__, dtype, *names, *extra)
        yield Step(f"compile {op} {shape} {dtype}", SECONDS, command, environment={} if extra else ONE_THREAD)


ONE_THREAD = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
"""Many processes share the cores. Else each that calls torch.compile would start a process for each core."""


def apart(works: Iterable[Workload], batch: int) -> Iterator[Workload]:
    """The same kernels in smaller parts: each level of ``refine`` in the place of all in a row."""
    for work in works:
        if work.shape == refinement.all_levels(batch).shape:
            levels = [refinement.workload("refine", level, batch) for level in range(len(LEVELS))]
            yield from (level._replace(training=work.training) for level in levels)
        else:
            yield work


def main() -> int:
    from . import measure, tune

    dtype, *names = (argument for argument in sys.argv[1:] if argument != REHEARSE)
    rehearse = REHEARSE in sys.argv
    if rehearse:
        from .rehearsal import prepare

        prepare()
    device, start = torch.device("cpu" if rehearse else "cuda"), time.monotonic()
    known = measure.by_name(rehearse)
    for name in names:
        setting = Setting(known[name], DTYPES[dtype], device)
        try:
            tune.runner(setting)
        except WrongResult as problem:
            print(problem)  # it will show again where it is measured
    print(f"{len(names)} workloads, {time.monotonic() - start:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""``python -m bench.overhead``: what a call of each op costs on a map of a few cells, beside plain PyTorch.

There is next to nothing to compute, so this is the time of Python, of checks and of PyTorch's dispatcher. Both take
turns. An op without tiny inputs here runs on the smallest that the bench has.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from sharpmask_kernels import env, registry

from . import machine
from .measure import Setting
from .pages import markdown
from .peers import contestants
from .timing import cell, interleaved
from .workloads import SMALL, Workload, forward
from .workloads.tiny import tiny

CALLS = 100
"""Timed at once."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.overhead", description=(__doc__ or "").partition(": ")[2])
    parser.add_argument("--op", choices=registry.OPS, action="append", help="only this op; may be repeated")
    parser.add_argument("--rounds", type=int, default=30, help="turns of each (default: %(default)s)")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(env.table(machine.describe().items()), flush=True)
    rows = [
        measured(workload, options.rounds) for workload in workloads() if workload.op in (options.op or registry.OPS)
    ]
    head = [f"a call, {machine.conditions(torch.device('cpu'))}", "cpu", "eager", "cpu / eager"]
    print("\n" + (markdown if options.markdown else env.table)([head, *rows]))
    return 0


def workloads() -> Iterator[Workload]:
    """Op by op, forward only and, where the op has gradients, with them."""
    smallest = {workload.op: workload for workload in reversed(forward(SMALL))} | tiny()
    for op in registry.OPS:
        yield smallest[op]
        if hasattr(registry.room("reference", registry.ROOMS[op]), f"{op}_backward"):
            yield smallest[op]._replace(training=True)


def measured(workload: Workload, rounds: int) -> list[str]:
    kind = torch.float32, torch.device("cpu")
    setting, found = Setting(workload, *kind), contestants(workload, *kind, [])[0]
    runs = [setting.runner(next(c for c in found if c.name == name)) for name in ("cpu", "eager")]
    ours, eager = interleaved([functools.partial(repeat, run) for run in runs], rounds)
    times = (f"{1e6 * np.median(seconds) / CALLS:.1f} µs" for seconds in (ours, eager))
    return [f"{workload.op}, {workload.mode}", *times, cell(ours / eager)]


def repeat(run: Callable[[], None]) -> None:
    for _ in range(CALLS):
        run()


if __name__ == "__main__":
    sys.exit(main())

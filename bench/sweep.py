"""``python -m bench.sweep``: the decoder steps beside eager PyTorch over all sizes that decoders have.

A ratio is the time of eager PyTorch divided by that of the op on backend ``cpu``: 2.00 is twice as fast. For each
memory format there are two: to eager PyTorch in the same format, and in the faster of both. By default every two values
of any two parameters meet; ``--full`` runs all combinations. Sizes that would move more than ``--megabytes`` are left
out.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from sharpmask_kernels import env
from tests.grid import covering

from . import isa
from .machine import describe
from .measure import Setting, WrongResult
from .peers import contestants
from .workloads.base import Workload
from .workloads.decoder import Level, UpsampleMerge
from .workloads.refinement import AddUpsample, MergeUpsample, Refine

OPS = ("merge_upsample", "refine", "add_upsample", "upsample_merge")
CHANNELS = (4, 8, 16, 32, 64, 128, 256, 512)
SIDES = (7, 14, 28, 56, 112, 224, 256)
BATCHES = (1, 32)
THREADS = (1, 2)


class Point(NamedTuple):
    op: str
    channels: int
    """Of every map."""
    side: int
    batch: int
    training: bool
    threads: int

    @property
    def megabytes(self) -> float:
        """Of the upsampled map."""
        return self.batch * self.channels * 4 * self.side**2 * 4 / 2**20

    @property
    def products(self) -> int:
        """At least."""
        return self.batch * self.side**2 * 9 * self.channels**2

    @property
    def workload(self) -> Workload:
        c = self.channels
        module = {
            "merge_upsample": lambda _: MergeUpsample(c, c, c),
            "refine": lambda _: Refine(c, c, c, c),
            "add_upsample": lambda _: AddUpsample(c, c),
            "upsample_merge": lambda _: UpsampleMerge(Level(c, c, c, 2), "relu"),
        }[self.op]
        shape = f"{c}-{self.batch}x{self.side}x{self.side}"
        first = (self.batch, c, self.side, self.side)
        second = (self.batch, c, 2 * self.side, 2 * self.side) if self.op == "upsample_merge" else first
        return Workload(self.op, shape, module, lambda randn: (randn(*first), randn(*second)), self.training)

    @property
    def cells(self) -> list[str]:
        mode = "training" if self.training else "forward"
        return [self.op, str(self.channels), f"{self.batch}x{self.side}x{self.side}", mode, str(self.threads)]


RATIOS = ("contiguous", "to the faster", "channels_last", "to the faster")


class Result(NamedTuple):
    point: Point
    ratios: tuple[float, float, float, float]
    """Those of ``RATIOS``."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.isa and not isa.held():
        return isa.run_held("bench.sweep", sys.argv[1:] if arguments is None else arguments, options.isa)
    points = selected(options)
    print(env.table(describe().items()), flush=True)
    print("\n" + "  ".join(["op", "channels", "maps", "mode", "threads", *RATIOS]))
    results = []
    for point in points:
        try:
            results.append(measured(point, options.rounds))
        except WrongResult as error:  # in large sums rounding may stop, or not, an activation near 0
            print("  ".join([*point.cells, f"left out: {error}"]), flush=True)
            continue
        print("  ".join([*point.cells, *map("{:.2f}".format, results[-1].ratios)]), flush=True)
    print("\n" + env.table(summary(results)))
    return 0


def parse(arguments: Sequence[str] | None) -> Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.sweep",
        description=(__doc__ or "").partition("\n\n")[2],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--full", action="store_true", help="all combinations")
    parser.add_argument("--isa", choices=isa.VARIABLES, help="hold everybody to this instruction set")
    parser.add_argument("--op", choices=OPS, action="append", help="only this op; may be repeated")
    parser.add_argument("--threads", type=int, action="append", help="only so many threads; may be repeated")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each")
    parser.add_argument("--megabytes", type=float, default=128, help="of the upsampled map, at most")
    return parser.parse_args(arguments)


def selected(options: Namespace) -> list[Point]:
    values = (options.op or OPS, CHANNELS, SIDES, BATCHES, (False, True), options.threads or THREADS)
    points = [
        point for point in itertools.starmap(Point, itertools.product(*values)) if point.megabytes <= options.megabytes
    ]
    if options.full:
        return points
    chosen = covering(points)
    return [point for i, point in enumerate(points) if i in chosen]


def measured(point: Point, rounds: int) -> Result:
    torch.set_num_threads(point.threads)
    kind = torch.float32, torch.device("cpu")
    found, _ = contestants(point.workload, *kind, [])
    setting = Setting(point.workload, *kind)
    names = ("eager", "eager-nhwc", "cpu", "cpu-nhwc")
    runs = {c.name: setting.runner(c, first) for first, c in enumerate(found) if c.name in names}
    times = dict(zip(runs, least(list(runs.values()), rounds, point.threads), strict=True))
    eager, last = times["eager"], times["eager-nhwc"]
    ours, ours_last = times["cpu"], times["cpu-nhwc"]
    return Result(point, (eager / ours, min(eager, last) / ours, last / ours_last, min(eager, last) / ours_last))


def least(runs: Sequence[Callable[[], object]], rounds: int, threads: int) -> list[float]:
    """The least time of each, of turns that last some milliseconds. Of one thread, only its own time counts."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    repeats = max(1, int(5e-3 / max(1e-6, min(seconds(run, 1, clock) for run in [*runs, *runs]))))
    turns = [[seconds(run, repeats, clock) for run in runs] for _ in range(rounds)]
    return [min(times) for times in zip(*turns, strict=True)]


def seconds(run: Callable[[], object], repeats: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(repeats):
        run()
    return (clock() - start) / repeats


def summary(results: Sequence[Result]) -> Iterator[tuple[str, ...]]:
    """The worst ratios, of all and of parts."""
    yield "worst ratio of", *RATIOS
    parts: dict[str, Callable[[Point], bool]] = {"all": lambda p: True}
    parts |= {op: functools.partial(lambda p, op: p.op == op, op=op) for op in OPS}
    parts |= {
        "forward": lambda p: not p.training,
        "training": lambda p: p.training,
        "at most 64 channels": lambda p: p.channels <= 64,
        "more channels": lambda p: p.channels > 64,
        "calls of a million multiply-adds and more": lambda p: p.products >= 1e6,
    }
    for name, holds in parts.items():
        those = [result for result in results if holds(result.point)]
        if those:
            yield name, *(f"{min(ratios):.2f}" for ratios in zip(*(result.ratios for result in those), strict=True))


if __name__ == "__main__":
    sys.exit(main())

"""``python -m sharpmask_kernels.tune`` measures which route computes a step fastest on this machine, for every size.

The table goes to the user's cache folder, where :mod:`sharpmask_kernels.backends.cpu.routes` finds it. It takes some
minutes on an idle machine; on a busy one, it says little.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import layout
from .backends.cpu import decoder, device, routes, steps
from .backends.cpu.convolutions import Convolution
from .machine import write_whole

SHAPES = dict(zip(routes.CELLS, [(1, 8, 8), (2, 16, 16), (4, 32, 32), (8, 64, 64)], strict=True))
"""Batch, height and width that have so many cells."""
MOST_PRODUCTS = 6e8
"""Of a call that is measured. What is best for a larger one is that for the largest one measured."""
GAIN = 0.97
"""Share of the default route's time that another may take at most to be chosen."""
SECONDS = 0.015
"""For each route of a size, at least."""
HOPELESS = 2
"""A route that takes so many times as long as the best is not measured again."""


class Size(NamedTuple):
    step: str
    channels_last: bool
    cells: int
    outputs: int
    inputs: int

    @property
    def products(self) -> int:
        upsampled = 4 if self.step in ("nearest", "mask") else 1
        return self.cells * upsampled * self.outputs * self.inputs * 9


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if reason := device.unavailable():
        print(f"error: there is nothing to choose from: {reason}", file=sys.stderr)
        return 1
    if options.threads:
        torch.set_num_threads(options.threads)
    path = routes.SHIPPED if options.shipped else options.out or routes.measured_file()
    isa = str(device.module().isa())
    entry = {**routes.measured_here(), "threads": torch.get_num_threads(), "rows": measured(progress)}
    try:
        write_whole(path, as_text({**others(path), isa: entry}))
    except OSError as error:
        print(f"error: {path} cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    print(f"{path}: {isa}, {torch.get_num_threads()} threads; a program reads it when it starts")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m sharpmask_kernels.tune", description=" ".join((__doc__ or "").partition("\n\n")[0].split())
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--out", type=Path, help="the file to write (default: in the cache folder)")
    where.add_argument("--shipped", action="store_true", help="write the package's own table, for its developers")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's choice)")
    options = parser.parse_args(arguments)
    if options.threads is not None and options.threads < 1:
        parser.error(f"--threads must be at least 1, got {options.threads}")
    return options


def others(path: Path) -> dict[str, Any]:
    """What a table has for all instruction sets; nothing, where there is no table."""
    try:
        return routes.contents(path)
    except ValueError:
        return {}


def as_text(table: dict[str, Any]) -> str:
    """JSON with a line for each row."""
    return re.sub(r"\[[^\[\]]*\]", lambda row: json.dumps(json.loads(row[0])), json.dumps(table, indent=1)) + "\n"


def progress(done: int, of: int, name: str) -> None:
    end = "\n" if done == of else "\r"
    print(f"{done / of:4.0%} {name:30}", end=end, file=sys.stderr, flush=True)


def measured(report: Callable[[int, int, str], None]) -> routes.Rows:
    """The rows of a table."""
    rows = [(step, last, cells) for step in routes.STEPS for last in (False, True) for cells in routes.CELLS]
    found: routes.Rows = {}
    for i, (step, last, cells) in enumerate(rows):
        name = routes.row_name(step, last, cells)
        report(i, len(rows), name)
        before = found.get(routes.row_name(step, last, smaller(cells)))
        found[name] = [
            "".join(
                letter(Size(step, last, cells, outputs, inputs), before[o][k] if before else "")
                for k, inputs in enumerate(routes.CHANNELS)
            )
            for o, outputs in enumerate(routes.CHANNELS)
        ]
    report(len(rows), len(rows), "")
    return found


def smaller(cells: int) -> int:
    return routes.CELLS[max(routes.CELLS.index(cells) - 1, 0)]


def letter(size: Size, before: str) -> str:
    """The first letter of the fastest route; ``before``: that for fewer cells."""
    if before and size.products > MOST_PRODUCTS:
        return before
    return fastest(times(size), routes.default(size.step, size.inputs))[0]


def fastest(seconds: dict[str, float], default: str) -> str:
    best = min(seconds, key=lambda route: seconds[route])
    return best if seconds[best] < GAIN * seconds[default] else default


def times(size: Size) -> dict[str, float]:
    """Seconds of each route: the least of some calls, which take turns."""
    call = calls(size)
    best: dict[str, float] = {}
    spent = 0.0
    for turn in range(50):
        if turn >= 3 and spent >= SECONDS * len(best):
            break
        for route in routes.STEPS[size.step]:
            if turn >= 2 and best[route] > HOPELESS * min(best.values()):
                continue
            with routes.forced(**{size.step: route}):
                took = seconds(call)
            spent += took
            best[route] = min(took, best.get(route, took))
    return best


def seconds(call: Callable[[], object]) -> float:
    # Of one thread, only its own time counts: other programs do not disturb.
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    call()
    return clock() - start


def calls(size: Size) -> Callable[[], object]:
    """A call of the step at this size, on random maps."""
    step, last, cells, outputs, inputs = size
    memory_format = layout.chosen(last)

    def random(channels: int, order: torch.memory_format = memory_format, scale: int = 1) -> Tensor:
        batch, height, width = SHAPES[cells]
        return numbers(batch, channels, scale * height, scale * width).contiguous(memory_format=order)

    weight = numbers(outputs, inputs, 3, 3).contiguous(memory_format=memory_format)
    convolution = Convolution(weight, numbers(outputs))
    if step == "merge":
        pair = random(inputs // 2), random(inputs // 2)
        return lambda: steps.merge(pair, None, convolution, "bilinear", "zeros", False, memory_format)
    if step == "skip":
        feature = random(inputs)
        return lambda: steps.skip(feature, convolution, "zeros", memory_format)
    if step == "nearest":
        mask, beside = random(inputs // 2), random(inputs // 2, scale=2)
        return lambda: decoder.upsample_merge(mask, beside, *convolution, True, "nearest", "zeros", "relu")
    if step == "mask":
        mask, upsampled = random(inputs), random(outputs, scale=2)
        return lambda: decoder.mask_gradient(upsampled, mask, weight, "nearest", "zeros", memory_format)
    grad = random(outputs, layout.chosen(steps.reads_pixels(outputs, last)))
    like = random(inputs)
    return lambda: steps.input_gradient(grad, weight, like, "zeros", last)


def numbers(*shape: int) -> Tensor:
    """Random; made once, as that takes longer than some calls."""
    return random_numbers()[: math.prod(shape)].view(shape).clone()


@functools.cache
def random_numbers() -> Tensor:
    return torch.randn(int(MOST_PRODUCTS) // 9 // min(routes.CHANNELS))


if __name__ == "__main__":
    sys.exit(main())

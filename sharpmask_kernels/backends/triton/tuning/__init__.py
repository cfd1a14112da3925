"""Which configuration a Triton kernel is launched with: it stands in the tables beside this file.

A table is of an architecture (``sm_90.json``: compute capability 9.0), and a GPU without one takes the nearest. It has
an entry for each kernel and class of shapes; a class without one takes the nearest, too. Nothing is timed at run time.
``python -m bench.gpu --stage tune`` writes tables.

Configurations differ in the pixels of a program, in warps and in pipeline stages, never in the order of a sum, so the
choice does not change a bit of the result.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

FOLDER = Path(__file__).parent

MOST_SHARED = 99 << 10
"""Bytes of shared memory that a program may take: what a GPU of every compute capability from 8.0 on has."""


class Config(NamedTuple):
    pixels: int
    """Of one program."""
    warps: int
    stages: int
    """Of the pipeline that loads."""

    def options(self) -> dict[str, int]:
        return {"PIXELS": self.pixels, "num_warps": self.warps, "num_stages": self.stages}


class Shape(NamedTuple):
    """A class of shapes: all whose channels have the same next powers of two."""

    bits: int
    """Of an element."""
    inputs: int
    """Channels that are summed over."""
    outputs: int
    """Channels that are made."""

    @classmethod
    def of(cls, dtype: torch.dtype, inputs: int, outputs: int) -> Shape:
        return cls(8 * dtype.itemsize, _power(inputs), _power(outputs))

    def distance(self, other: Shape) -> float:
        channels = zip(self[1:], other[1:], strict=True)
        return 10 * (self.bits != other.bits) + sum(abs(math.log2(a / b)) for a, b in channels)


def _power(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


UNTUNED = {
    "conv3x3.forward": Config(64, 4, 3),
    "conv3x3.input_gradient": Config(64, 4, 3),
    "upsample.forward": Config(128, 4, 2),
    "decoder.forward": Config(64, 4, 3),
}
"""For each kernel what suits most GPUs: taken where there is no table, and by Triton's interpreter, in which programs
so small cut even small maps into several tiles."""

Table = Mapping[tuple[str, Shape], Config]


@functools.cache
def tables() -> dict[str, Table]:
    """Those that are shipped, by architecture."""
    return {path.stem: read(path) for path in sorted(FOLDER.glob("*.json"))}


def read(path: Path) -> Table:
    """A table. Its rows: kernel, bits, inputs, outputs, pixels, warps, stages."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return {(kernel, Shape(*row[:3])): Config(*row[3:]) for kernel, *row in rows}


def text(table: Table, about: str) -> str:
    """What :func:`read` reads, with how the table came about."""
    rows = [json.dumps([kernel, *shape, *config]) for (kernel, shape), config in sorted(table.items())]
    return f'{{\n"about": {json.dumps(about)},\n"rows": [\n' + ",\n".join(rows) + "\n]\n}\n"


@functools.cache
def architecture(device: torch.device) -> str | None:
    """``sm_90`` or ``gfx942``, as tables are named; None where kernels are interpreted."""
    if device.type != "cuda":
        return None
    if torch.version.hip:
        return str(torch.cuda.get_device_properties(device).gcnArchName).partition(":")[0]
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))


def nearest(name: str, known: Mapping[str, Table]) -> str | None:
    """The table for an architecture: its own, that of the last one before, or the first one after it; none of another
    maker's."""
    if name in known:
        return name
    capability = _capability(name)
    others = sorted((_capability(other), other) for other in known if _capability(other))
    if not capability or not others:
        return None
    return max((o for o in others if o[0] < capability), default=others[0])[1]


def _capability(name: str) -> int:
    found = re.fullmatch(r"sm_(\d+)", name)
    return int(found[1]) if found else 0


def chosen(kernel: str, like: Tensor, inputs: int, outputs: int) -> dict[str, int]:
    """The options of a launch of ``kernel`` on maps like ``like``, that sums over ``inputs`` channels and makes
    ``outputs``."""
    return _chosen(kernel, like.dtype, inputs, outputs, like.device)


@functools.cache
def _chosen(kernel: str, dtype: torch.dtype, inputs: int, outputs: int, device: torch.device) -> dict[str, int]:
    shape = Shape.of(dtype, inputs, outputs)
    _asked.setdefault((kernel, shape))
    return (_forced.get((kernel, shape)) or look_up(kernel, shape, architecture(device))).options()


def look_up(kernel: str, shape: Shape, name: str | None) -> Config:
    """From the table for an architecture."""
    table = tables().get((name and nearest(name, tables())) or "", {})
    shapes = [own for of, own in table if of == kernel]
    if not shapes:
        return UNTUNED[kernel]
    return table[kernel, min(shapes, key=shape.distance)]


# For those who measure.

_asked: dict[tuple[str, Shape], None] = {}
_forced: dict[tuple[str, Shape], Config] = {}


def asked() -> list[tuple[str, Shape]]:
    """The kernels and shapes that have been looked up since :func:`force` was called."""
    return [*_asked]


@contextlib.contextmanager
def force(choices: Table) -> Iterator[None]:
    """Launch with these configurations, whatever the tables say."""
    before = dict(_forced)
    _forced.update(choices)
    _forget()
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(before)
        _forget()


def _forget() -> None:
    _asked.clear()
    _chosen.cache_clear()

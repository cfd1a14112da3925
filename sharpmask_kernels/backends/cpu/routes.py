"""Which route computes a step of an op on the CPU: the fastest, by a table of measurements.

A table has a row for each step, memory format and number of cells, such as "merge channels_last 4096". A row has a
word for each number of outputs, and a word has a letter for each number of inputs, both of :data:`CHANNELS`: the first
letter of a route. Sizes in between go to the nearest in proportion.

The package brings a table for each instruction set it was measured on. ``python -m sharpmask_kernels.tune`` measures
one for this machine. The route depends on nothing but the size, so that results have the same bits for any number of
threads.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...machine import cache_folder, cpu_model
from .. import native
from . import device

log = logging.getLogger("sharpmask_kernels")

STEPS = {
    "merge": ("rows", "tiles", "library"),
    "skip": ("product", "library"),
    "input": ("rows", "product", "library"),
    "nearest": ("phases", "tiles", "library"),
    "mask": ("phases", "tiles", "library"),
}
"""The routes of every step: of the refinement ops (:mod:`.steps`), and of ``upsample_merge`` (:mod:`.decoder`)."""
CHANNELS = tuple(1 << i for i in range(2, 10))
CELLS = (64, 512, 4096, 32768)
"""Of all maps of a batch together, before the upsampling."""
MANY_INPUTS = 32
"""Without a table, gradients of so many inputs are products."""
VARIABLE = "SHARPMASK_ROUTES"
SHIPPED = Path(__file__).with_name("routes.json")
MOST_BYTES = 1 << 20

Rows = dict[str, list[str]]


def choose(step: str, weight: Tensor, like: Tensor, channels_last: bool) -> str:
    """The route for a convolution with this weight on maps of the size of ``like``."""
    if step in _forced:
        return _forced[step]
    batch, _, height, width = like.shape
    outputs, inputs = weight.shape[:2]
    return _chosen(step, outputs, inputs, batch * height * width, channels_last, like.dtype == torch.float64)


@functools.lru_cache(maxsize=4096)
def _chosen(step: str, outputs: int, inputs: int, cells: int, channels_last: bool, wide: bool) -> str:
    found = None if wide else table().route(step, outputs, inputs, cells, channels_last)
    return found or default(step, inputs)


def default(step: str, inputs: int) -> str:
    """The route where no table has one: the right one for few channels."""
    return "product" if step == "input" and inputs >= MANY_INPUTS else STEPS[step][0]


_forced: dict[str, str] = {}


@contextmanager
def forced(**routes: str) -> Iterator[None]:
    """In the block, the steps named take these routes. For measurements and tests: it holds for all threads."""
    before = dict(_forced)
    _forced.update(routes)
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(before)


@dataclass(frozen=True)
class Table:
    source: str
    """Where it comes from, for the report of :mod:`sharpmask_kernels.env`."""
    rows: Rows

    def route(self, step: str, outputs: int, inputs: int, cells: int, channels_last: bool) -> str | None:
        words = self.rows.get(row_name(step, channels_last, CELLS[_nearest(cells, CELLS)]))
        if words is None:
            return None
        letter = words[_nearest(outputs, CHANNELS)][_nearest(inputs, CHANNELS)]
        return next(route for route in STEPS[step] if route[0] == letter)


def row_name(step: str, channels_last: bool, cells: int) -> str:
    return f"{step} {'channels_last' if channels_last else 'contiguous'} {cells}"


def _nearest(size: int, sizes: tuple[int, ...]) -> int:
    """The place of the nearest of ``sizes``."""
    return min(range(len(sizes)), key=lambda i: abs(math.log(max(size, 1) / sizes[i])))


@functools.cache
def table() -> Table:
    """The table in use: that of the environment variable, else the measured one of this machine, else the shipped."""
    asked = os.environ.get(VARIABLE, "")
    if asked == "off":
        return Table(f"none: {VARIABLE}=off", {})
    if asked != "shipped":
        path = Path(asked) if asked else measured_file()
        if asked or path.exists():
            try:
                return read(path, measured_here())
            except ValueError as error:
                log.warning("%s is not used: %s; python -m sharpmask_kernels.tune makes one", path, error)
    return read(SHIPPED, {})


def measured_file() -> Path:
    return cache_folder() / "routes.json"


def measured_here() -> dict[str, str]:
    """What a measured table belongs to."""
    kernels = native.sources_of(device.module())
    return {"kernels": kernels, "cpu": cpu_model(), "torch": torch.__version__}


def read(path: Path, expected: dict[str, str]) -> Table:
    """The table of a file for this instruction set, empty if it has none.

    Raises ``ValueError`` if the file is no table, or not one of what is expected.
    """
    isa = str(device.module().isa())
    found = contents(path).get(isa)
    if found is None:
        return Table(f"{path}: nothing for {isa}", {})
    if not isinstance(found, dict) or not isinstance(found.get("rows"), dict):
        raise ValueError(f"{isa} must be an object with rows, an object")
    for name, value in expected.items():
        if found.get(name) != value:
            raise ValueError(f"it must be measured with {name} {value!r}, got {found.get(name)!r}")
    for name, words in found["rows"].items():
        check_row(name, words)
    return Table(f"{path}: {isa}, measured on {found.get('cpu')}", found["rows"])


def contents(path: Path) -> dict[str, Any]:
    """What a file holds for each instruction set. Raises ``ValueError``."""
    try:
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror}") from None
    if len(text) > MOST_BYTES:
        raise ValueError(f"it must have at most {MOST_BYTES} bytes")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it must be JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError("it must be a JSON object")
    return found


def check_row(name: str, words: Any) -> None:
    """Raises ``ValueError`` for what is no row of a table."""
    known = {row_name(step, last, cells): step for step in STEPS for last in (False, True) for cells in CELLS}
    if name not in known:
        raise ValueError(f"a row must be named as in {next(iter(known))!r}, got {name!r}")
    letters = {route[0] for route in STEPS[known[name]]}
    count = len(CHANNELS)
    if not (
        isinstance(words, list)
        and len(words) == count
        and all(isinstance(word, str) and len(word) == count and set(word) <= letters for word in words)
    ):
        raise ValueError(f"row {name!r} must have {count} words of {count} letters of {''.join(sorted(letters))}")

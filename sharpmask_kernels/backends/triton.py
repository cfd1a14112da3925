"""The Triton kernels of :mod:`sharpmask_kernels.triton_kernels`: NVIDIA and AMD GPUs, or Triton's interpreter.

The interpreter (``TRITON_INTERPRET=1`` in the environment before triton is imported) runs the same kernels on the CPU,
thousands of times slower: for tests. triton is imported when the first op runs.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import layout
from .reference import FAR

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
"""triton reads the variable when it is imported, so a later change has no meaning."""


@functools.cache
def unavailable() -> str | None:
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return f"triton cannot be imported: {error}"
    if not INTERPRETED and not torch.cuda.is_available():
        return "PyTorch finds no CUDA or ROCm device, and TRITON_INTERPRET=1 is not set"
    return None


def refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda" and not (INTERPRETED and device.type == "cpu"):
        return f"maps must be on a CUDA or ROCm device on backend 'triton', got {device}"
    if dtype not in DTYPES:
        return f"maps must be of dtype {DTYPES[0]}, {DTYPES[1]} or {DTYPES[2]} on backend 'triton', got {dtype}"
    return None


def _launcher(op: Callable[..., Any]) -> Callable[..., Any]:
    """``op`` on the device of its tensors; under the interpreter, which computes on the raw bits of bf16, in fp32."""

    @functools.wraps(op)
    def run(first: Any, *others: Any) -> Any:
        like = first if isinstance(first, Tensor) else first[0]
        if INTERPRETED and like.dtype == torch.bfloat16:
            return _cast(op(*_cast((first, *others), torch.bfloat16, torch.float32)), torch.float32, torch.bfloat16)
        with torch.cuda.device_of(like):
            return op(first, *others)

    return run


def _cast(x: Any, old: torch.dtype, new: torch.dtype) -> Any:
    """Every tensor of dtype ``old`` in a nest of tuples and lists, channels_last if it was."""
    if isinstance(x, tuple | list):
        return type(x)(_cast(item, old, new) for item in x)
    if isinstance(x, Tensor) and x.dtype == old:
        return x.to(new, memory_format=layout.memory_format(x) if x.ndim == 4 else torch.contiguous_format)
    return x


def _tiles(length: int, tile: int) -> int:
    return -(-length // tile)


def _power_of_2(n: int, most: int) -> int:
    """The least power of two from ``n`` on, or ``most``, itself one."""
    return min(1 << max(n - 1, 0).bit_length(), most)


# gather_windows


@dataclass(frozen=True)
class GatherTile:
    """How many elements a program of gather_windows works on, and how many of them lie side by side in memory."""

    elements: int
    inner: int

    def shape(self, cells: int, channels: int, channels_last: bool) -> tuple[int, int]:
        """(cells, channels) of a tile: never much larger than what there is."""
        if channels_last:
            inner = _power_of_2(channels, self.inner)
            return _power_of_2(cells, self.elements // inner), inner
        inner = _power_of_2(cells, self.inner)
        return inner, _power_of_2(channels, self.elements // inner)


GATHER_TILE = GatherTile(256, 16) if INTERPRETED else GatherTile(2048, 256)
"""On a GPU 128 bytes and more side by side, 128 bits a thread. Small under the interpreter, so that small inputs cross
the edges of tiles. Tests set others."""


@_launcher
def gather_windows(
    maps: Sequence[Tensor], image: Tensor, scale: Tensor, row: Tensor, col: Tensor, size: int, step: int
) -> Tensor:
    from ..triton_kernels import gather_windows as kernels

    batch, channels = maps[0].shape[:2]
    memory_format = layout.memory_format(*maps)
    out = layout.empty((len(image), channels, size, size), maps[0], memory_format)
    windows = [x.contiguous() for x in (image, scale, row, col)]
    step = min(step, FAR)
    channels_last = memory_format == torch.channels_last
    cell_tile, channel_tile = GATHER_TILE.shape(size * size, channels, channels_last)
    grid = (len(image) * _tiles(size * size, cell_tile) * _tiles(channels, channel_tile),)
    if grid[0] == 0:
        return out
    for this, m in enumerate(maps):
        kernels.forward[grid](
            m,
            m.stride(),
            out,
            out.stride(),
            *windows,
            this,
            len(maps),
            batch,
            channels,
            m.shape[2],
            m.shape[3],
            size,
            FAR // step + 1,
            step,
            CHANNELS_LAST=channels_last,
            CELLS=cell_tile,
            CHANNELS=channel_tile,
        )
    return out


@_launcher
def gather_windows_backward(
    grad: Tensor,
    image: Tensor,
    scale: Tensor,
    row: Tensor,
    col: Tensor,
    batch: int,
    heights: Sequence[int],
    widths: Sequence[int],
    channels_last: bool,
    needs: Sequence[bool],
    step: int,
) -> list[Tensor]:
    from ..triton_kernels import gather_windows as kernels

    channels, size = grad.shape[1:3]
    bounds, *windows = _by_segment(image, scale, row, col, batch, len(needs), step)
    gradients = []
    for this, (height, width, need) in enumerate(zip(heights, widths, needs, strict=True)):
        if not need:
            continue
        gradient = layout.empty((batch, channels, height, width), grad, layout.chosen(channels_last))
        gradients.append(gradient)
        cell_tile, channel_tile = GATHER_TILE.shape(height * width, channels, channels_last)
        cols = _power_of_2(width, min(16, cell_tile))
        rows = cell_tile // cols
        tiles = _tiles(height, rows) * _tiles(width, cols) * _tiles(channels, channel_tile)
        if batch == 0:
            continue
        kernels.backward[(batch * tiles,)](
            gradient,
            gradient.stride(),
            grad,
            grad.stride(),
            bounds,
            *windows,
            this * batch,
            channels,
            height,
            width,
            size,
            CHANNELS_LAST=channels_last,
            ROWS=rows,
            COLS=cols,
            CHANNELS=channel_tile,
        )
    return gradients


def _by_segment(
    image: Tensor, scale: Tensor, row: Tensor, col: Tensor, batch: int, scales: int, step: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Windows ordered by scale and image, else as they come: what is summed in this order has the same bits every time.

    Returns where the segment ``scale * batch + image`` begins, (scales * batch + 1); the windows' indices; their first
    rows and columns on the map. Windows of no map come last. Nothing waits for the device.
    """
    known = (scale >= 0) & (scale < scales) & (image >= 0) & (image < batch)
    segment, order = torch.sort(torch.where(known, scale * batch + image, scales * batch), stable=True)
    bounds = torch.searchsorted(segment, torch.arange(scales * batch + 1, device=image.device))
    step = min(step, FAR)
    limit = FAR // step + 1
    top, left = (x[order].clamp(-limit, limit) * step for x in (row, col))
    return bounds, order, top, left

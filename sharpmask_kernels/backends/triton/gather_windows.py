"""gather_windows by Triton kernels, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ... import layout
from ...windows import FAR
from .device import INTERPRETED
from .launch import FUSED, as_map, launcher, power_of_2, tiles


class GatherTile(NamedTuple):
    """How many elements a program of gather_windows works on, and how many of them are contiguous in memory."""

    elements: int
    inner: int

    def shape(self, cells: int, channels: int, channels_last: bool) -> tuple[int, int]:
        """(cells, channels) of a tile: each less than twice what there is."""
        if channels_last:
            inner = power_of_2(channels, self.inner)
            return power_of_2(cells, self.elements // inner), inner
        inner = power_of_2(cells, self.inner)
        return inner, power_of_2(channels, self.elements // inner)


GATHER_TILE = GatherTile(512, 16) if INTERPRETED else GatherTile(2048, 256)
"""On a GPU at least 512 contiguous bytes, and 128 bits a thread. Under the interpreter tiles are small, so that small
inputs are cut into several. Tests set others."""

MOST_COLUMNS = 16
"""Of a tile in the backward: a tile about as high as wide is covered by the fewest windows."""


@launcher
def gather_windows(
    maps: Sequence[Tensor], image: Tensor, scale: Tensor, row: Tensor, col: Tensor, size: int, step: int
) -> Tensor:
    from .kernels import gather_windows as kernels

    batch, channels = maps[0].shape[:2]
    memory_format = layout.memory_format(*maps)
    out = layout.empty((len(image), channels, size, size), maps[0], memory_format)
    windows = [x.contiguous() for x in (image, scale, row, col)]
    step = min(step, FAR)
    channels_last = memory_format == torch.channels_last
    cell_tile, channel_tile = GATHER_TILE.shape(size * size, channels, channels_last)
    grid = (len(image) * tiles(size * size, cell_tile) * tiles(channels, channel_tile),)
    if grid[0] == 0:
        return out
    for this, m in enumerate(maps):
        kernels.forward[grid](
            as_map(m),
            as_map(out),
            *windows,
            this,
            len(maps),
            batch,
            m.shape[2],
            m.shape[3],
            size,
            FAR // step + 1,
            step,
            C=channels,
            CHANNELS_LAST=channels_last,
            CELLS=cell_tile,
            CHANNELS=channel_tile,
            **FUSED,
        )
    return out


@launcher
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
    from .kernels import gather_windows as kernels

    channels, size = grad.shape[1:3]
    bounds, *windows = _by_segment(image, scale, row, col, batch, len(needs), step)
    gradients = []
    for this, (height, width, need) in enumerate(zip(heights, widths, needs, strict=True)):
        if not need:
            continue
        gradient = layout.empty((batch, channels, height, width), grad, layout.chosen(channels_last))
        gradients.append(gradient)
        cell_tile, channel_tile = GATHER_TILE.shape(height * width, channels, channels_last)
        cols = power_of_2(width, min(MOST_COLUMNS, cell_tile))
        rows = cell_tile // cols
        programs = tiles(height, rows) * tiles(width, cols) * tiles(channels, channel_tile)
        if batch == 0:
            continue
        kernels.backward[(batch * programs,)](
            as_map(gradient),
            as_map(grad),
            bounds,
            *windows,
            this * batch,
            height,
            width,
            size,
            C=channels,
            CHANNELS_LAST=channels_last,
            ROWS=rows,
            COLS=cols,
            CHANNELS=channel_tile,
            **FUSED,
        )
    return gradients


def _by_segment(
    image: Tensor, scale: Tensor, row: Tensor, col: Tensor, batch: int, scales: int, step: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Windows ordered by scale and image, and otherwise in the order given: so sums have the same bits in every run.

    Returns where each segment ``scale * batch + image`` begins, (scales * batch + 1), and of each window in this order
    its index and its first row and column on the map. Windows of no map come last. Nothing waits for the device.
    """
    known = (scale >= 0) & (scale < scales) & (image >= 0) & (image < batch)
    segment, order = torch.sort(torch.where(known, scale * batch + image, scales * batch), stable=True)
    bounds = torch.searchsorted(segment, torch.arange(scales * batch + 1, device=image.device))
    step = min(step, FAR)
    limit = FAR // step + 1
    top, left = (x[order].clamp(-limit, limit) * step for x in (row, col))
    return bounds, order, top, left

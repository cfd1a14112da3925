"""gather_windows by Triton kernels, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ... import layout
from ...windows import FAR
from .device import INTERPRETED
from .launch import FUSED, launcher, power_of_2, strides, tiles


@dataclass(frozen=True)
class GatherTile:
    """How many elements a program of gather_windows works on, and how many of them lie side by side in memory."""

    elements: int
    inner: int

    def shape(self, cells: int, channels: int, channels_last: bool) -> tuple[int, int]:
        """(cells, channels) of a tile: never much larger than what there is."""
        if channels_last:
            inner = power_of_2(channels, self.inner)
            return power_of_2(cells, self.elements // inner), inner
        inner = power_of_2(cells, self.inner)
        return inner, power_of_2(channels, self.elements // inner)


GATHER_TILE = GatherTile(512, 16) if INTERPRETED else GatherTile(2048, 256)
"""On a GPU 128 bytes and more side by side, 128 bits a thread. Small under the interpreter, so that small inputs cross
the edges of tiles. Tests set others."""


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
    out_strides, out_unit = strides(out)
    for this, m in enumerate(maps):
        map_strides, map_unit = strides(m)
        kernels.forward[grid](
            m,
            map_strides,
            out,
            out_strides,
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
            MAP_UNIT=map_unit,
            OUT_UNIT=out_unit,
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
    grad_strides, grad_unit = strides(grad)
    gradients = []
    for this, (height, width, need) in enumerate(zip(heights, widths, needs, strict=True)):
        if not need:
            continue
        gradient = layout.empty((batch, channels, height, width), grad, layout.chosen(channels_last))
        gradients.append(gradient)
        cell_tile, channel_tile = GATHER_TILE.shape(height * width, channels, channels_last)
        cols = power_of_2(width, min(16, cell_tile))
        rows = cell_tile // cols
        programs = tiles(height, rows) * tiles(width, cols) * tiles(channels, channel_tile)
        if batch == 0:
            continue
        out_strides, out_unit = strides(gradient)
        kernels.backward[(batch * programs,)](
            gradient,
            out_strides,
            grad,
            grad_strides,
            bounds,
            *windows,
            this * batch,
            height,
            width,
            size,
            C=channels,
            OUT_UNIT=out_unit,
            GRAD_UNIT=grad_unit,
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

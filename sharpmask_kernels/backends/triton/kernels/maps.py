"""What the kernels share: maps as their arguments, which pixel a program works on, and upsampling by two."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Map(NamedTuple):
    """A (batch, channels, height, width) map as an argument of a kernel.

    The strides of batch, rows and columns are in units of ``unit`` elements. The compiler knows the unit, and derives
    from it how wide it may load. It also knows a stride of 1, such as that of channels in channels_last.
    """

    pointer: Any  # a tensor for the host, its address in a kernel
    batch: int
    channel: int
    row: int
    column: int
    unit: tl.constexpr


@triton.jit
def offset(m: Map, image: tl.tensor, row: tl.tensor, column: tl.tensor) -> tl.tensor:
    """Elements from the first of map ``m`` to the first channel of a pixel, in 64 bits if ``image`` is."""
    return (image * m.batch + row.to(tl.int64) * m.row + column * m.column) * m.unit


@triton.jit
def locate(pixel: tl.tensor, height: tl.tensor, width: tl.tensor) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The image (64 bits), row and column of a pixel, which is counted over all images."""
    column = pixel % width
    row = pixel // width % height
    image = (pixel // width // height).to(tl.int64)
    return image, row, column


@triton.jit
def cells_and_channels(
    CELLS: tl.constexpr, CHANNELS: tl.constexpr, CHANNELS_LAST: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """The cells and channels of a tile from 0 on, along its two dimensions."""
    if CHANNELS_LAST:
        cell = tl.arange(0, CELLS)[:, None]
        channel = tl.arange(0, CHANNELS)[None, :]
    else:
        cell = tl.arange(0, CELLS)[None, :]
        channel = tl.arange(0, CHANNELS)[:, None]
    return cell, channel


@triton.jit
def lag(row: tl.tensor, length: tl.tensor, UPSAMPLE: tl.constexpr) -> tl.tensor:
    """How many cells before ``row / 2`` a row of the upsampled map lies, in a map of ``length`` cells.

    A quarter. Where the corners of both maps coincide ("bilinear_corners"): 0 for the first row to 1/2 for the last.
    """
    if UPSAMPLE == "bilinear_corners":
        cells = row.to(tl.float32) / (4 * length - 2).to(tl.float32)
    else:
        cells = tl.full(row.shape, 0.25, tl.float32)
    return cells


@triton.jit
def neighbours(
    row: tl.tensor, length: tl.tensor, UPSAMPLE: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """The two cells that a row of the upsampled map lies between, and their shares of it."""
    odd = row % 2
    first = row // 2 - 1 + odd
    share = lag(row, length, UPSAMPLE) + 0.5 * odd
    return tl.maximum(first, 0), tl.minimum(first + 1, length - 1), share, 1 - share


@triton.jit
def upsampled(
    m: Map,
    image: tl.tensor,
    row: tl.tensor,
    col: tl.tensor,
    channel: tl.tensor,
    inside: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    UPSAMPLE: tl.constexpr,
) -> tl.tensor:
    """Map ``m`` of (height, width), upsampled, at a pixel of the upsampled map, 0 where not ``inside``; in fp32.

    ``channel``: elements from a pixel's first channel.
    """
    if UPSAMPLE == "nearest":
        at = offset(m, image, row // 2, col // 2) + channel
        values = tl.load(m.pointer + at, mask=inside, other=0).to(tl.float32)
    else:
        above, below, of_above, of_below = neighbours(row, height, UPSAMPLE)
        left, right, of_left, of_right = neighbours(col, width, UPSAMPLE)
        at = offset(m, image, above, left) + channel
        upper = of_left * tl.load(m.pointer + at, mask=inside, other=0).to(tl.float32)
        at = offset(m, image, above, right) + channel
        upper += of_right * tl.load(m.pointer + at, mask=inside, other=0).to(tl.float32)
        at = offset(m, image, below, left) + channel
        lower = of_left * tl.load(m.pointer + at, mask=inside, other=0).to(tl.float32)
        at = offset(m, image, below, right) + channel
        lower += of_right * tl.load(m.pointer + at, mask=inside, other=0).to(tl.float32)
        values = of_above * upper + of_below * lower
    return values


@triton.jit
def went_into(i: tl.tensor, y: tl.tensor, length: tl.tensor, UPSAMPLE: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """Row ``i``, of four (of two in "nearest"), of the upsampled map that cell ``y`` went into, and its share there."""
    if UPSAMPLE == "nearest":
        row = 2 * y + i
        share = tl.full(y.shape, 1.0, tl.float32)
    else:
        wanted = 2 * y - 1 + i
        row = tl.minimum(tl.maximum(wanted, 0), 2 * length - 1)
        share = 1 - tl.abs(0.5 * (i - 1) - lag(wanted, length, UPSAMPLE))
        if UPSAMPLE == "bilinear_corners":
            share = tl.where(row == wanted, share, 0)
        # Else the border stands for what lies beyond it, so that its share of the outputs is larger.
    return row, share


@triton.jit
def upsampled_gradient(
    grad: Map,
    image: tl.tensor,
    y: tl.tensor,
    x: tl.tensor,
    channel: tl.tensor,
    real: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    UPSAMPLE: tl.constexpr,
) -> tl.tensor:
    """The gradient of a map of (height, width) at (y, x) from ``grad``, that of the upsampled map; in fp32.

    Each cell gathers from the pixels that it went into. ``channel``: elements from a pixel's first channel.
    """
    SIDE: tl.constexpr = 2 if UPSAMPLE == "nearest" else 4
    total = tl.full(real.shape, 0.0, tl.float32)
    for i in tl.range(SIDE):
        row, of_row = went_into(i, y, height, UPSAMPLE)
        for j in tl.static_range(SIDE):
            col, of_col = went_into(j, x, width, UPSAMPLE)
            at = offset(grad, image, row, col) + channel
            total += of_row * of_col * tl.load(grad.pointer + at, mask=real, other=0).to(tl.float32)
    return total

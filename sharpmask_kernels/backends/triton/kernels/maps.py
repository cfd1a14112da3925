"""What the kernels share: maps as their arguments, and which pixel a program works on."""

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

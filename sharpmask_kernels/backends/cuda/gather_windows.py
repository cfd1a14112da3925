"""gather_windows on NVIDIA GPUs, forward and backward."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from torch import Tensor

from .. import native
from .device import _cuda, on_device


@on_device
def gather_windows(
    maps: Sequence[Tensor], image: Tensor, scale: Tensor, row: Tensor, col: Tensor, size: int, step: int, stream: int
) -> Tensor:
    run = functools.partial(_cuda.gather_windows, stream=stream)
    return native.gather_windows(run, maps, image, scale, row, col, size, step)


@on_device
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
    stream: int,
) -> list[Tensor]:
    run = functools.partial(_cuda.gather_windows_backward, stream=stream)
    places, sizes = (image, scale, row, col), (batch, heights, widths)
    return native.gather_windows_backward(run, grad, *places, *sizes, channels_last, needs, step)

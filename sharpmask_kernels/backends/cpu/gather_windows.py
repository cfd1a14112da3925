"""gather_windows on CPUs, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import native
from .device import module


def gather_windows(
    maps: Sequence[Tensor], image: Tensor, scale: Tensor, row: Tensor, col: Tensor, size: int, step: int
) -> Tensor:
    return native.gather_windows(module(), torch.get_num_threads(), maps, image, scale, row, col, size, step)


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
    places, sizes = (image, scale, row, col), (batch, heights, widths)
    return native.gather_windows_backward(
        module(), torch.get_num_threads(), grad, *places, *sizes, channels_last, needs, step
    )

"""gather_windows on CPUs, forward and backward."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ... import _cpu
from .. import native


def gather_windows(
    maps: Sequence[Tensor], image: Tensor, scale: Tensor, row: Tensor, col: Tensor, size: int, step: int
) -> Tensor:
    run = functools.partial(_cpu.gather_windows, threads=torch.get_num_threads())
    return native.gather_windows(run, maps, image, scale, row, col, size, step)


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
    run = functools.partial(_cpu.gather_windows_backward, threads=torch.get_num_threads())
    places, sizes = (image, scale, row, col), (batch, heights, widths)
    return native.gather_windows_backward(run, grad, *places, *sizes, channels_last, needs, step)

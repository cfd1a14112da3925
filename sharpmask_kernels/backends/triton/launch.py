"""What every launch of a Triton kernel needs: the device, maps as arguments, sizes of tiles."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ... import layout
from .device import INTERPRETED

if TYPE_CHECKING:  # it imports triton
    from .kernels.maps import Map

FUSED = {"enable_fp_fusion": True}
"""For every launch: a * b + c in one instruction, whatever the default of this version of Triton is."""

WIDEST_LOAD = 16
"""Elements. The widest load of a lane is 16 bytes, so a larger unit would tell the compiler nothing."""


def launcher(op: Callable[..., Any]) -> Callable[..., Any]:
    """``op`` on the device of its tensors.

    Triton's interpreter computes on the raw bits of bf16. Under it such tensors are cast to fp32, and results back.
    """

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


@functools.cache
def _argument() -> tuple[type[Map], dict[int, Any]]:
    """What a map becomes as an argument of a kernel, and every unit as a constant of the compiler."""
    from triton.language import constexpr

    from .kernels.maps import Map

    return Map, {unit: constexpr(unit) for unit in (1, 2, 4, 8, WIDEST_LOAD)}


def as_map(x: Tensor) -> Map:
    """The map ``x`` as an argument of a kernel."""
    return _as_map(x, x.stride(1))


def as_pixels(x: Tensor) -> Map:
    """As :func:`as_map`, with the channels of each pixel contiguous: ``x`` is copied if they are not."""
    return _as_map(contiguous_pixels(x), 1)


def _as_map(x: Tensor, channel_stride: int) -> Map:
    batch, _, row, column = x.stride()
    unit = math.gcd(WIDEST_LOAD, batch, row, column)
    argument, units = _argument()
    return argument(x, batch // unit, channel_stride, row // unit, column // unit, units[unit])


def contiguous_pixels(x: Tensor) -> Tensor:
    """``x``, or a copy in channels_last if the channels of its pixels are not contiguous."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous(memory_format=torch.channels_last)


def tiles(length: int, tile: int) -> int:
    """How many tiles cover ``length``."""
    return -(-length // tile)


def power_of_2(n: int, most: int) -> int:
    """The least power of two that is at least ``n``, but no more than ``most``, itself a power of two."""
    return min(1 << max(n - 1, 0).bit_length(), most)

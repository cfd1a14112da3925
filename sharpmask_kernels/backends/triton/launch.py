"""What every launch of a Triton kernel needs: device, strides, sizes of tiles."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import layout
from .device import INTERPRETED

FUSED = {"enable_fp_fusion": True}
"""For every launch: a * b + c in one instruction, whatever the default of this version of Triton is."""


def launcher(op: Callable[..., Any]) -> Callable[..., Any]:
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


def tiles(length: int, tile: int) -> int:
    return -(-length // tile)


def strides(x: Tensor) -> tuple[tuple[int, int, int, int], int]:
    """(batch, channel, row, column) strides, all but the channel's in units of the second result.

    The unit, at most 16, goes to the compiler, which derives from it how wide it may load.
    """
    batch, channel, row, col = x.stride()
    unit = math.gcd(16, batch, row, col)
    return (batch // unit, channel, row // unit, col // unit), unit


def power_of_2(n: int, most: int) -> int:
    """The least power of two from ``n`` on, or ``most``, itself one."""
    return min(1 << max(n - 1, 0).bit_length(), most)

"""Memory formats: that of an op's output follows from its maps, on every backend and for fake tensors alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def memory_format(*maps: Tensor) -> torch.memory_format:
    """The format of an op's output: channels_last if all its maps are channels_last and not also contiguous."""
    try:
        for m in maps:  # a loop, since a call on a small map notices how long this takes
            if m.is_contiguous() or not m.is_contiguous(memory_format=torch.channels_last):
                return torch.contiguous_format
    except RuntimeError:  # vmap does not tell
        return torch.contiguous_format
    return torch.channels_last


def chosen(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def arranged(x: Tensor, memory_format: torch.memory_format) -> Tensor:
    """``x``, or a copy of it, in the format."""
    try:
        return x.contiguous(memory_format=memory_format)
    except RuntimeError:  # vmap has one format only
        return x.contiguous()


def empty(shape: Sequence[int], like: Tensor, memory_format: torch.memory_format) -> Tensor:
    """Uninitialised, of the dtype and device of ``like``."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


def empty_like(x: Tensor) -> Tensor:
    """Uninitialised, dense, and in the format that an op gives out for the map ``x``."""
    return empty(x.shape, x, memory_format(x))

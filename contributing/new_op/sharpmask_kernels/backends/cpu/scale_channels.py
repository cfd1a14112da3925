"""scale_channels on CPUs, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import _cpu, layout
from ..native import view


def scale_channels(maps: Tensor, factor: Tensor) -> Tensor:
    return _scaled(maps, factor, layout.empty_like(maps))


def scale_channels_backward(grad: Tensor, maps: Tensor, factor: Tensor, needs: Sequence[bool]) -> list[Tensor]:
    need_maps, need_factor = needs
    gradients = []
    if need_maps:
        gradients.append(_scaled(grad, factor, layout.empty_like(maps)))
    if need_factor:
        d_factor = layout.empty_like(factor)
        threads = torch.get_num_threads()
        _cpu.scale_channels_factor_gradient(grad=view(grad), maps=view(maps), out=view(d_factor), threads=threads)
        gradients.append(d_factor)
    return gradients


def _scaled(maps: Tensor, factor: Tensor, out: Tensor) -> Tensor:
    _cpu.scale_channels(maps=view(maps), factor=view(factor), out=view(out), threads=torch.get_num_threads())
    return out

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
    gradients = [_scaled(grad, factor, layout.empty_like(maps))] if need_maps else []
    return [*gradients, (grad * maps).sum((0, 2, 3))] if need_factor else gradients


def _scaled(maps: Tensor, factor: Tensor, out: Tensor) -> Tensor:
    _cpu.scale_channels(maps=view(maps), factor=view(factor), out=view(out), threads=torch.get_num_threads())
    return out

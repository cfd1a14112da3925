"""horizontal in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import layout
from .refinement import conv3x3


def horizontal(
    feature: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    padding_mode: str,
    needed: Tensor | None,
    tile: int,
) -> Tensor:
    x = feature
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        x = conv3x3(F.relu(x) if i else x, weight, bias, padding_mode)
    if needed is not None:
        cells = needed.repeat_interleave(tile, 1).repeat_interleave(tile, 2)
        x = torch.where(cells[:, None, : x.shape[2], : x.shape[3]], x, 0)
    return x.contiguous(memory_format=layout.memory_format(feature))

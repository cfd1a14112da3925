"""horizontal in plain PyTorch, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import layout
from ..needs import ConvNeeds, HorizontalNeeds
from ..tiles import cells
from .refinement import asked, conv3x3, conv3x3_backward


def horizontal(
    feature: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    padding_mode: str,
    needed: Tensor | None,
    tile: int,
    save: bool,
) -> tuple[Tensor, list[Tensor]]:
    x, hidden = feature, []
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if i:
            x = F.relu(x)
            hidden.append(layout.arranged(x, torch.channels_last))
        x = conv3x3(x, weight, bias, padding_mode)
    out = layout.arranged(where_needed(x, needed, tile), layout.memory_format(feature))
    return out, hidden if save else []


def where_needed(x: Tensor, needed: Tensor | None, tile: int) -> Tensor:
    """``x``, and 0 in tiles that are not needed."""
    if needed is None:
        return x
    return torch.where(cells(needed, tile, x.shape[2:]), x, 0)


def horizontal_backward(
    grad: Tensor,
    hidden: Sequence[Tensor],
    feature: Tensor,
    weights: Sequence[Tensor],
    padding_mode: str,
    needed: Tensor | None,
    tile: int,
    channels_last: bool,
    needs: Sequence[bool],
) -> list[Tensor]:
    asked_for = HorizontalNeeds.of(needs)
    inputs = [feature, *hidden]
    d_weights: list[Tensor | None] = [None] * len(weights)
    d_biases, d_input = d_weights.copy(), where_needed(grad, needed, tile)
    for i in reversed(range(asked_for.first, len(weights))):
        d_output = torch.where(inputs[i + 1] <= 0, 0, d_input) if i + 1 < len(inputs) else d_input
        wanted = ConvNeeds(asked_for.input(i), asked_for.weights[i], asked_for.biases[i])
        d_input, d_weights[i], d_biases[i] = conv3x3_backward(d_output, inputs[i], weights[i], padding_mode, wanted)
    d_feature = d_input if asked_for.feature else None
    return asked([d_feature, *d_weights, *d_biases], needs, channels_last)

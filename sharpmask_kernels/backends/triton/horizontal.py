"""horizontal by Triton kernels, forward and backward: a launch for each convolution and for each of its gradients.

The first convolution reads its wide feature in place. cuDNN's would first need a padded copy of it, whose bytes take as
long as the convolution's arithmetic does at the peak (for H100 in 16 bit: 4 C bytes a pixel at 3.35 TB/s, 1152 C
operations at 989 TFLOP/s, 1.2 ps times C each). And cuDNN's gradients of weights differ from run to run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import layout
from ..needs import ConvNeeds, HorizontalNeeds
from ..tiles import cells
from .convolutions import Convolution, conv, convolution_gradients, formatted
from .launch import launcher


@launcher
def horizontal(
    feature: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    padding_mode: str,
    needed: Tensor | None,
    tile: int,
    save: bool,
) -> tuple[Tensor, list[Tensor]]:
    *first, last = (Convolution(*pair, padding_mode) for pair in zip(weights, biases, strict=True))
    x, hidden = feature, []
    for convolution in first:
        x = conv(x, convolution, torch.channels_last, relu=True)
        hidden.append(x)
    out = conv(x, last, layout.memory_format(feature), relu=False)
    if needed is not None:
        out.masked_fill_(~cells(needed, tile, out.shape[2:]), 0)
    return out, hidden if save else []


@launcher
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
    asked = HorizontalNeeds.of(needs)
    if needed is not None:
        grad = grad.masked_fill(~cells(needed, tile, grad.shape[2:]), 0)
    d_input: Tensor | None = grad
    d_weights: list[Tensor | None] = [None] * len(weights)
    d_biases = d_weights.copy()
    for i in reversed(range(asked.first, len(weights))):
        assert d_input is not None
        wanted = ConvNeeds(asked.input(i), asked.weights[i], asked.biases[i])
        d_input, d_weights[i], d_biases[i] = convolution_gradients(
            formatted(d_input, torch.channels_last),
            hidden[i - 1] if i else feature,
            Convolution(weights[i], None, padding_mode),
            channels_last,
            wanted,
            relu=i > 0,
        )
    d_feature = d_input if asked.feature else None
    return [gradient for gradient in (d_feature, *d_weights, *d_biases) if gradient is not None]

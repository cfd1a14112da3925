"""horizontal on CPUs, forward and backward.

For a backward, the convolutions are computed one after another around the needed tiles, each where the next one reads,
and so are their gradients. What a wide first convolution makes of a feature is by far the most work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ... import _cpu, layout
from ..native import optional_view, view
from ..needs import HorizontalNeeds, ParameterNeeds
from ..tiles import cells
from .convolutions import (
    feature_gradient_into,
    input_gradient_into,
    is_wide,
    parameter_gradients,
    wide_convolution,
    wide_dtype,
    wide_feature_gradient_into,
    wide_parameter_gradients,
)

MANY_CHANNELS = 64
"""Of a feature: from so many on, its convolution by tiles, in whole, is faster than row by row with the next ones."""
MANY_TILES = 0.4
"""Share of the tiles that must be needed for that."""


class Area(NamedTuple):
    """A part of all maps of a batch."""

    top: int
    bottom: int
    left: int
    right: int

    def of(self, x: Tensor) -> Tensor:
        return x[:, :, self.top : self.bottom, self.left : self.right]

    def grown(self, cells: int, size: Sequence[int]) -> Area:
        """With so many more cells on every side, as far as maps of this size have them."""
        height, width = size
        top, left = max(self.top - cells, 0), max(self.left - cells, 0)
        return Area(top, min(self.bottom + cells, height), left, min(self.right + cells, width))


def _area(needed: Tensor | None, tile: int, size: Sequence[int]) -> Area:
    """A small one that has all needed tiles."""
    height, width = size
    if needed is None:
        return Area(0, height, 0, width)
    if not needed.any():
        return Area(0, 1, 0, 1)
    (top, bottom), (left, right) = (
        (int(which[0]) * tile, (int(which[-1]) + 1) * tile)
        for which in (needed.any(2).any(0).nonzero(), needed.any(1).any(0).nonzero())
    )
    return Area(top, min(bottom, height), left, min(right, width))


def _areas(convs: int, needed: Tensor | None, tile: int, size: Sequence[int]) -> list[Area]:
    """Of every convolution's result, the area that the next one reads; of the last's, the one with needed tiles."""
    area = _area(needed, tile, size)
    return [area.grown(convs - 1 - i, size) for i in range(convs)]


def _chain(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    padding_mode: str,
    out: Tensor,
    needed: Tensor | None = None,
    tile: int = 1,
    relu: bool = False,
) -> None:
    """Writes the needed tiles of the whole chain's result, which is computed row by row."""
    _cpu.horizontal(
        feature=view(x),
        weights=[view(weight) for weight in weights],
        biases=[optional_view(bias) for bias in biases],
        zeros=padding_mode == "zeros",
        needed=None if needed is None else view(needed.view(torch.uint8)),
        tile=tile,
        relu=relu,
        out=view(out),
        threads=torch.get_num_threads(),
    )


def _convolve(x: Tensor, weight: Tensor, bias: Tensor, padding_mode: str, area: Area, out: Tensor, relu: bool) -> None:
    """Writes the area of a convolution's result ``out``. Cells beside it become undefined."""
    if is_wide(weight):
        wide_convolution(x, weight, bias, padding_mode, relu, (area.top, area.left), area.of(out))
    else:
        around = area.grown(1, x.shape[2:])
        _chain(around.of(x), [weight], [bias], padding_mode, around.of(out), relu=relu)


def horizontal(
    feature: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    padding_mode: str,
    needed: Tensor | None,
    tile: int,
    save: bool,
) -> tuple[Tensor, list[Tensor]]:
    batch, channels, *size = feature.shape
    shapes = [(batch, weight.shape[0], *size) for weight in weights]
    out = layout.empty(shapes[-1], feature, layout.memory_format(feature))
    areas = _areas(len(weights), needed, tile, size)
    if save:
        maps = [feature, *(layout.empty(shape, feature, torch.channels_last) for shape in shapes[:-1]), out]
        for i, (weight, bias, area) in enumerate(zip(weights, biases, areas, strict=True)):
            _convolve(maps[i], weight, bias, padding_mode, area, maps[i + 1], relu=i + 1 < len(weights))
        if needed is not None:
            out.masked_fill_(~cells(needed, tile, size), 0)
        return out, maps[1:-1]
    if needed is not None:
        out.zero_()
    if len(weights) > 1 and is_wide(weights[0]) and channels >= MANY_CHANNELS and _share(needed) >= MANY_TILES:
        hidden = layout.empty(shapes[0], feature, torch.channels_last)
        _convolve(feature, weights[0], biases[0], padding_mode, areas[0], hidden, relu=True)
        feature, weights, biases = hidden, weights[1:], biases[1:]
    _chain(feature, weights, biases, padding_mode, out, needed, tile)
    return out, []


def _share(needed: Tensor | None) -> float:
    return 1 if needed is None else needed.float().mean().item()


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
    size = feature.shape[2:]
    areas = _areas(len(weights), needed, tile, size)
    if needed is not None:
        grad = grad.masked_fill(~cells(needed, tile, size), 0)
    grad = grad.to(wide_dtype(grad.dtype))
    d_feature: Tensor | None = None
    parameters: list[tuple[Tensor | None, Tensor | None]] = [(None, None)] * len(weights)
    for i in reversed(range(asked.first, len(weights))):
        x, weight, area = hidden[i - 1] if i else feature, weights[i], areas[i]
        around = area.grown(1, size)
        wanted = ParameterNeeds(asked.weights[i], asked.biases[i])
        if is_wide(weight):
            corner = (area.top, area.left)
            parameters[i] = wide_parameter_gradients(area.of(grad), x, padding_mode, corner, channels_last, wanted)
        else:
            maps = (around.of(x),)
            parameters[i] = parameter_gradients(around.of(grad), maps, padding_mode, channels_last, wanted)
        if i == 0 and asked.feature:
            d_feature = _feature_gradient(grad, weight, padding_mode, area, feature, channels_last)
        elif asked.input(i):
            # The next step reads a ring around the area, except of a wide first convolution.
            bare = around == Area(0, size[0], 0, size[1]) or (i == 1 and is_wide(weights[0]))
            before = (torch.empty_like if bare else torch.zeros_like)(
                x, dtype=grad.dtype, memory_format=torch.channels_last
            )
            input_gradient_into(around.of(grad), weight, padding_mode, around.of(before), relu=around.of(x))
            grad = before
    d_weights, d_biases = zip(*parameters, strict=True)
    return [gradient for gradient in (d_feature, *d_weights, *d_biases) if gradient is not None]


def _feature_gradient(
    grad: Tensor, weight: Tensor, padding_mode: str, area: Area, feature: Tensor, channels_last: bool
) -> Tensor:
    size = feature.shape[2:]
    around = area.grown(1, size)
    out = layout.empty(feature.shape, feature, layout.chosen(channels_last))
    if around != Area(0, size[0], 0, size[1]):
        out.zero_()
    if is_wide(weight):
        at_border = ((area.top == 0, area.bottom == size[0]), (area.left == 0, area.right == size[1]))
        wide_feature_gradient_into(area.of(grad), weight, padding_mode, at_border, around.of(out))
    else:
        feature_gradient_into(around.of(grad), weight, padding_mode, around.of(out))
    return out

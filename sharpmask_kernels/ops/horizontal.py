"""``horizontal``: the half of a refinement module that depends on the feature alone.

A backward keeps the inputs and the maps between the convolutions, after ReLU, in channels_last. The forward makes these
only if ``save``; the first, the widest, takes a fifth of the memory that autograd keeps for the same convolutions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import checks, dispatch, layout
from ..backends.reference import horizontal as reference
from . import calling
from .calling import ConvParameters
from .library import Case, define, differentiable


def horizontal(
    feature: Tensor,
    convs: Sequence[ConvParameters],
    *,
    needed: Tensor | None = None,
    tile: int = 1,
    padding_mode: str = "zeros",
    backend: str | None = None,
) -> Tensor:
    """A chain of 3x3 convolutions, ReLU between them and none after the last. Differentiable in every tensor.

    With a refinement module's skip convolutions and the skip's half of its merging convolution, it is all of the module
    that the windows of an image share (section 3.2; the released code sums the halves). feature (B, C, H, W); convs
    [(weight (O, C, 3, 3), bias (O) or None), ...] -> (B, O of the last, H, W).

    ``needed`` (B, ceil(H / tile), ceil(W / tile)), bool: which tiles of ``tile`` x ``tile`` cells of the result are
    computed; the others are 0, whatever the inputs. None: all.
    """
    autocast = calling.autocast_dtype(feature)
    (feature,) = calling.cast(autocast, feature)
    listed = enumerate(checks.listed("convs", convs, "a list of convolutions"))
    convs = [calling.cast(autocast, *checks.pair(f"convs[{i}]", conv, calling.PAIR)) for i, conv in listed]
    checks.choice("padding_mode", padding_mode, checks.PADDING_MODES)
    checks.feature_map("feature", feature, "(B, C, H, W)")
    if not convs:
        raise checks.refusal("convs", "at least one convolution", "an empty list")
    channels = feature.shape[1]
    for i, (weight, bias) in enumerate(convs):
        checks.conv3x3(f"convs[{i}].", weight, bias, channels, None, feature)
        channels = weight.shape[0]
    tile = checks.integer("tile", tile, 1)
    _check_needed(needed, tile, feature)

    weights = [weight for weight, _ in convs]
    # A list in which some tensors are missing has no gradient in PyTorch.
    biases = [weight.new_zeros(weight.shape[0]) if bias is None else bias for weight, bias in convs]
    save = torch.is_grad_enabled() and any(x.requires_grad for x in (feature, *weights, *biases))
    arguments = (feature, weights, biases, padding_mode, needed, tile)
    with calling.after_cast(feature, autocast):
        if calling.exporting():
            return reference.horizontal(*arguments, False)[0]
        out: Tensor = _HORIZONTAL(*arguments, save, dispatch.choose("horizontal", feature, backend))[0]
        return out


def _check_needed(needed: Tensor | None, tile: int, feature: Tensor) -> None:
    if needed is None:
        return
    checks.tensor("needed", needed)
    batch, _, height, width = feature.shape
    shape = (batch, -(-height // tile), -(-width // tile))
    if needed.shape != shape:
        raise checks.refusal("needed", f"of shape {shape}", tuple(needed.shape))
    if needed.dtype != torch.bool:
        raise checks.refusal("needed", "of dtype torch.bool", needed.dtype)
    if needed.device != feature.device:
        raise checks.refusal("needed", f"on device {feature.device} like the other tensors", needed.device)


def _fake(a: Any) -> tuple[Tensor, list[Tensor]]:
    def map_of(weight: Tensor, memory_format: torch.memory_format) -> Tensor:
        batch, _, height, width = a.feature.shape
        return layout.empty((batch, weight.shape[0], height, width), a.feature, memory_format)

    hidden = [map_of(weight, torch.channels_last) for weight in a.weights[:-1]] if a.save else []
    return map_of(a.weights[-1], layout.memory_format(a.feature)), hidden


def _backward_fake(a: Any) -> list[Tensor]:
    inputs = [a.feature, *a.weights, *map(calling.bias_of, a.weights)]
    return calling.empty_gradients(inputs, a.channels_last, a.needs)


_HORIZONTAL = define(reference.horizontal, _fake)
differentiable(
    _HORIZONTAL,
    define(reference.horizontal_backward, _backward_fake),
    inputs=("feature", "weights", "biases"),
    results=("out", "hidden"),
    derived=lambda a: {"channels_last": layout.memory_format(a.feature) == torch.channels_last},
)


def _cases(random: Callable[..., Tensor], device: torch.device) -> Iterator[tuple[str, Case]]:
    tiles = torch.arange(6 * 8, device=device).view(1, 6, 8) % 3 == 0
    for padding_mode, needed, widths in itertools.product(
        checks.PADDING_MODES, (None, tiles.expand(2, -1, -1)), ((5, 7, 4), (1, 1))
    ):
        inputs = [random(2, widths[0], 45, 61)]
        for a, b in itertools.pairwise(widths):
            inputs += [random(b, a, 3, 3) / (9 * a), random(b)]
        # Positive: no activation near 0, where rounding decides what ReLU lets through.
        inputs = [x.abs() for x in inputs]

        def run(
            backend: str, *inputs: Tensor, needed: Tensor | None = needed, padding_mode: str = padding_mode
        ) -> Tensor:
            feature, *parameters = inputs
            convs = list(zip(parameters[::2], parameters[1::2], strict=True))
            return horizontal(feature, convs, needed=needed, tile=8, padding_mode=padding_mode, backend=backend)

        yield (
            f"{padding_mode}, {'all' if needed is None else 'some'} tiles, {len(widths) - 1} convolutions",
            Case(inputs, run),
        )


CASES = {"horizontal": _cases}

"""The refinement module (section 3.2) as three ops: ``merge_upsample``, ``refine``, ``add_upsample``.

What a backward keeps: the inputs, the skip S (few channels) and ``active``, one bit for every activation that ReLU let
through, (B, Ko, H, ceil(W / 8)) uint8 packed along x, the first in the lowest bit. The forward makes the last two only
if ``save``. A backward returns only the gradients that ``needs`` asks for, in the order of the inputs; the gradients of
maps have the memory format of the output.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import checks, dispatch, layout
from ..backends.reference import refinement as reference
from . import calling
from .library import Case, Op, define, differentiable


def _call(
    op: Op,
    inputs: tuple[Tensor | None, ...],
    like: Tensor,
    upsample: str,
    padding_mode: str,
    autocast: torch.dtype | None,
    backend: str | None,
) -> Tensor:
    """The output of one of the three ops, which share their options and what they save."""
    # A backward may come: the op has to keep something for it.
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    with calling.after_cast(like, autocast):
        if calling.exporting():
            out: Tensor = getattr(reference, op.name)(*inputs, upsample, padding_mode, False)[0]
        else:
            out = op(*inputs, upsample, padding_mode, save, dispatch.choose(op.name, like, backend))[0]
    return out


def _empty_up2(out_channels: int, *maps: Tensor) -> Tensor:
    batch, _, height, width = maps[0].shape
    return layout.empty((batch, out_channels, 2 * height, 2 * width), maps[0], layout.memory_format(*maps))


def _empty_active(out_channels: int, like: Tensor, save: bool) -> Tensor:
    batch, _, height, width = like.shape
    shape = (batch, out_channels, height, (width + 7) // 8) if save else (0,)
    return like.new_empty(shape, dtype=torch.uint8)


def _derived(*maps: Tensor) -> dict[str, Any]:
    """What a backward takes besides arguments and results of its forward."""
    return {"channels_last": layout.memory_format(*maps) == torch.channels_last}


# merge_upsample


def merge_upsample(
    skip: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    upsample: str = "bilinear",
    padding_mode: str = "zeros",
    backend: str | None = None,
) -> Tensor:
    """upsample2x(ReLU(Conv(Concat(S, M)))), the refinement module after its skip (section 3.2).

    skip (B, Ks, H, W), mask (B, Km, H, W), weight (Ko, Ks + Km, 3, 3), bias (Ko) or None
    -> (B, Ko, 2H, 2W). Differentiable in every tensor.
    """
    autocast = calling.autocast_dtype(skip)
    skip, mask, weight, bias = calling.cast(autocast, skip, mask, weight, bias)
    checks.modes(upsample, padding_mode)
    checks.feature_map("skip", skip, "(B, Ks, H, W)")
    checks.feature_map("mask", mask, "(B, Km, H, W)", like=skip)
    checks.conv3x3("", weight, bias, skip.shape[1] + mask.shape[1], None, skip)
    inputs = (skip, mask, weight, bias)
    return _call(_MERGE_UPSAMPLE, inputs, skip, upsample, padding_mode, autocast, backend)


_MERGE_UPSAMPLE = define(
    reference.merge_upsample,
    lambda a: (_empty_up2(a.weight.shape[0], a.skip, a.mask), _empty_active(a.weight.shape[0], a.skip, a.save)),
)
differentiable(
    _MERGE_UPSAMPLE,
    define(
        reference.merge_upsample_backward,
        lambda a: calling.empty_gradients(
            [a.skip, a.mask, a.weight, calling.bias_of(a.weight)], a.channels_last, a.needs
        ),
    ),
    inputs=("skip", "mask", "weight", "bias"),
    results=("out", "active"),
    derived=lambda a: _derived(a.skip, a.mask),
)


# refine


def refine(
    feature: Tensor,
    mask: Tensor,
    skip_weight: Tensor,
    skip_bias: Tensor | None,
    merge_weight: Tensor,
    merge_bias: Tensor | None,
    *,
    upsample: str = "bilinear",
    padding_mode: str = "zeros",
    backend: str | None = None,
) -> Tensor:
    """The whole refinement module R(F, M) of section 3.2: S = ReLU(Conv(F)), then :func:`merge_upsample`.

    feature (B, Kf, H, W), mask (B, Km, H, W), skip_weight (Ks, Kf, 3, 3), merge_weight (Ko, Ks + Km, 3, 3),
    biases (Ks), (Ko) or None -> (B, Ko, 2H, 2W). Differentiable in every tensor.
    """
    autocast = calling.autocast_dtype(feature)
    inputs = calling.cast(autocast, feature, mask, skip_weight, skip_bias, merge_weight, merge_bias)
    feature, mask, skip_weight, skip_bias, merge_weight, merge_bias = inputs
    checks.modes(upsample, padding_mode)
    checks.feature_map("feature", feature, "(B, Kf, H, W)")
    checks.feature_map("mask", mask, "(B, Km, H, W)", like=feature)
    checks.conv3x3("skip_", skip_weight, skip_bias, feature.shape[1], None, feature)
    checks.conv3x3("merge_", merge_weight, merge_bias, skip_weight.shape[0] + mask.shape[1], None, feature)
    return _call(_REFINE, inputs, feature, upsample, padding_mode, autocast, backend)


def _refine_fake(a: Any) -> tuple[Tensor, Tensor, Tensor]:
    outputs, shape = a.merge_weight.shape[0], (a.feature.shape[0], a.skip_weight.shape[0], *a.feature.shape[2:])
    return (
        _empty_up2(outputs, a.feature, a.mask),
        layout.empty(shape, a.feature, layout.memory_format(a.feature, a.mask)) if a.save else a.feature.new_empty(0),
        _empty_active(outputs, a.feature, a.save),
    )


def _refine_backward_fake(a: Any) -> list[Tensor]:
    convolutions = [a.skip_weight, calling.bias_of(a.skip_weight), a.merge_weight, calling.bias_of(a.merge_weight)]
    return calling.empty_gradients([a.feature, a.mask, *convolutions], a.channels_last, a.needs)


_REFINE = define(reference.refine, _refine_fake)
differentiable(
    _REFINE,
    define(reference.refine_backward, _refine_backward_fake),
    inputs=("feature", "mask", "skip_weight", "skip_bias", "merge_weight", "merge_bias"),
    results=("out", "skip", "active"),
    derived=lambda a: _derived(a.feature, a.mask),
)


# add_upsample


def add_upsample(
    horizontal: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    upsample: str = "bilinear",
    padding_mode: str = "zeros",
    backend: str | None = None,
) -> Tensor:
    """upsample2x(ReLU(horizontal + Conv(M))): :func:`merge_upsample` with its convolution split in two.

    Conv(Concat(S, M)) = Conv_S(S) + Conv_M(M). The first half, ``horizontal`` (B, Ko, H, W), does not depend
    on the window and is computed once per image (section 3.3); it carries the bias. Also the merge of the
    released code. mask (B, Km, H, W), weight (Ko, Km, 3, 3), bias (Ko) or None -> (B, Ko, 2H, 2W).
    Differentiable in every tensor.
    """
    autocast = calling.autocast_dtype(horizontal)
    if autocast is not None:
        autocast = torch.promote_types(autocast, horizontal.dtype)
    horizontal, mask, weight, bias = inputs = calling.cast(autocast, horizontal, mask, weight, bias)
    checks.modes(upsample, padding_mode)
    checks.feature_map("horizontal", horizontal, "(B, Ko, H, W)")
    checks.feature_map("mask", mask, "(B, Km, H, W)", like=horizontal)
    checks.conv3x3("", weight, bias, mask.shape[1], horizontal.shape[1], horizontal)
    return _call(_ADD_UPSAMPLE, inputs, horizontal, upsample, padding_mode, autocast, backend)


def _add_upsample_backward_fake(a: Any) -> list[Tensor]:
    batch, _, height, width = a.mask.shape
    horizontal = a.mask.new_empty(batch, a.weight.shape[0], height, width)
    return calling.empty_gradients([horizontal, a.mask, a.weight, calling.bias_of(a.weight)], a.channels_last, a.needs)


_ADD_UPSAMPLE = define(
    reference.add_upsample,
    lambda a: (_empty_up2(a.weight.shape[0], a.horizontal, a.mask), _empty_active(a.weight.shape[0], a.mask, a.save)),
)
differentiable(
    _ADD_UPSAMPLE,
    define(reference.add_upsample_backward, _add_upsample_backward_fake),
    inputs=("horizontal", "mask", "weight", "bias"),
    results=("out", "active"),
    derived=lambda a: _derived(a.horizontal, a.mask),
)


# Self-check

_MODES = (
    ("bilinear", "zeros", torch.contiguous_format),
    ("bilinear", "replicate", torch.channels_last),
    ("nearest", "zeros", torch.channels_last),
    ("nearest", "replicate", torch.contiguous_format),
)
"""Any two of a mode's three parts meet. All eight modes would take twice as long, most of it for compiling."""


def _cases(
    function: Callable[..., Tensor],
    channels: Sequence[int],
    weights: Sequence[tuple[int, ...]],
    random: Callable[..., Tensor],
    device: torch.device,
) -> Iterator[tuple[str, Case]]:
    """Cases of ``function`` for two maps of these channels and parameters of these shapes."""
    for upsample, padding_mode, memory_format in _MODES:
        maps = [random(2, c, 9, 21).contiguous(memory_format=memory_format) for c in channels]
        # Positive: no activation near 0, where rounding decides what ReLU lets through. Small: sums fit into fp16.
        inputs = [x.abs() / 4 for x in [*maps, *(random(*shape) for shape in weights)]]
        options = {"upsample": upsample, "padding_mode": padding_mode}

        def run(backend: str, *inputs: Tensor, options: dict[str, str] = options) -> Tensor:
            return function(*inputs, **options, backend=backend)

        yield f"{upsample}, {padding_mode}, {memory_format}", Case(inputs, run)


CASES = {
    "merge_upsample": functools.partial(_cases, merge_upsample, (20, 9), [(6, 29, 3, 3), (6,)]),
    "refine": functools.partial(_cases, refine, (33, 9), [(20, 33, 3, 3), (20,), (6, 29, 3, 3), (6,)]),
    "add_upsample": functools.partial(_cases, add_upsample, (6, 9), [(6, 9, 3, 3), (6,)]),
}

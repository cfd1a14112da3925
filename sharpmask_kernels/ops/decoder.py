"""The steps of a decoder that upsamples first (U-Net, FPN, depth networks): ``upsample_merge`` and ``upsample_add``.

A backward keeps the maps and the result, which the next layer of a decoder most often keeps as well; with activation
"none" not even that. The upsampled map and the concatenation are never kept. The derivative of SiLU does not follow
from its result: where a gradient may come, PyTorch's own SiLU computes it after the op. The gradients of maps have the
memory format of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import checks, dispatch, layout
from ..backends.reference import decoder as reference
from . import calling
from .library import Case, Op, define, differentiable


def _call(
    op: Op,
    inputs: tuple[Tensor | None, ...],
    options: tuple[Any, ...],
    activation: str,
    autocast: torch.dtype | None,
    backend: str | None,
) -> Tensor:
    """The output of one of the two ops. The first input decides where it runs."""
    like = inputs[0]
    assert like is not None
    # A backward may come, and the op cannot give it.
    after = activation == "silu" and torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    arguments = (*inputs, *options, "none" if after else activation)
    with calling.after_cast(like, autocast):
        if calling.exporting():
            out: Tensor = getattr(reference, op.name)(*arguments)
        else:
            out = op(*arguments, dispatch.choose(op.name, like, backend))
        return F.silu(out) if after else out


def _check_large(name: str, x: Tensor, shape: str, mask: Tensor) -> None:
    """A map of twice the height and width of the mask."""
    checks.feature_map(name, x, shape)
    checks.same_kind(name, x, mask)
    batch, _, height, width = mask.shape
    if (x.shape[0], *x.shape[2:]) != (batch, 2 * height, 2 * width):
        expected = f"of batch {batch} and size {(2 * height, 2 * width)}, twice that of mask"
        raise checks.refusal(name, expected, tuple(x.shape))


def _empty_large(channels: int, mask: Tensor, skip: Tensor | None) -> Tensor:
    batch, _, height, width = mask.shape
    memory_format = layout.memory_format(*reference.maps_of(mask, skip))
    return layout.empty((batch, channels, 2 * height, 2 * width), mask, memory_format)


def _derived(mask: Tensor, skip: Tensor | None) -> dict[str, Any]:
    return {"channels_last": layout.memory_format(*reference.maps_of(mask, skip)) == torch.channels_last}


# upsample_merge


def upsample_merge(
    mask: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    mask_first: bool = True,
    upsample: str = "nearest",
    padding_mode: str = "zeros",
    activation: str = "relu",
    backend: str | None = None,
) -> Tensor:
    """activation(Conv(Concat(upsample2x(M), S))), a step of a decoder that upsamples first (U-Net and its kin).

    mask (B, Km, H, W), skip (B, Ks, 2H, 2W) or None (then Ks = 0), weight (Ko, Km + Ks, 3, 3), bias (Ko) or None
    -> (B, Ko, 2H, 2W). Without ``mask_first`` the skip's channels come first in the weight. ``upsample``: also
    "bilinear_corners" (align_corners=True). ``activation``: "relu", "elu" (alpha 1), "leaky_relu" (slope 0.01), "silu"
    or "none". Differentiable in every tensor; the gradient reads the result, unless the activation is "none".
    """
    autocast = calling.autocast_dtype(mask)
    mask, skip, weight, bias = inputs = calling.cast(autocast, mask, skip, weight, bias)
    checks.choice("upsample", upsample, checks.DECODER_UPSAMPLES)
    checks.choice("padding_mode", padding_mode, checks.PADDING_MODES)
    checks.choice("activation", activation, checks.ACTIVATIONS)
    if not isinstance(mask_first, bool):
        raise TypeError(f"mask_first must be True or False, got {mask_first!r}")
    checks.feature_map("mask", mask, "(B, Km, H, W)")
    if skip is not None:
        _check_large("skip", skip, "(B, Ks, 2H, 2W)", mask)
    channels = mask.shape[1] + (0 if skip is None else skip.shape[1])
    checks.conv3x3("", weight, bias, channels, None, mask)
    return _call(_UPSAMPLE_MERGE, inputs, (mask_first, upsample, padding_mode), activation, autocast, backend)


_UPSAMPLE_MERGE = define(reference.upsample_merge, lambda a: _empty_large(a.weight.shape[0], a.mask, a.skip))
differentiable(
    _UPSAMPLE_MERGE,
    define(
        reference.upsample_merge_backward,
        lambda a: calling.empty_gradients(
            [a.mask, a.skip, a.weight, calling.bias_of(a.weight)], a.channels_last, a.needs
        ),
    ),
    inputs=("mask", "skip", "weight", "bias"),
    results=("out",),
    derived=lambda a: _derived(a.mask, a.skip),
    reads_result=lambda a: a.activation != "none",
)


# upsample_add


def upsample_add(
    mask: Tensor,
    lateral: Tensor,
    *,
    upsample: str = "nearest",
    activation: str = "none",
    backend: str | None = None,
) -> Tensor:
    """activation(upsample2x(M) + lateral), a step of a feature pyramid network, in one pass.

    mask (B, K, H, W), lateral (B, K, 2H, 2W) -> (B, K, 2H, 2W). Options as of :func:`upsample_merge`. Differentiable in
    both maps; the gradient reads the result, unless the activation is "none".
    """
    autocast = calling.autocast_dtype(mask)
    if autocast is not None and isinstance(lateral, Tensor):
        autocast = torch.promote_types(mask.dtype, lateral.dtype)
    mask, lateral = inputs = calling.cast(autocast, mask, lateral)
    checks.choice("upsample", upsample, checks.DECODER_UPSAMPLES)
    checks.choice("activation", activation, checks.ACTIVATIONS)
    checks.feature_map("mask", mask, "(B, K, H, W)")
    _check_large("lateral", lateral, "(B, K, 2H, 2W)", mask)
    if lateral.shape[1] != mask.shape[1]:
        raise checks.refusal("lateral", f"of {mask.shape[1]} channels like mask", lateral.shape[1])
    return _call(_UPSAMPLE_ADD, inputs, (upsample,), activation, autocast, backend)


def _upsample_add_backward_fake(a: Any) -> list[Tensor]:
    batch, channels, height, width = a.grad.shape
    mask = a.grad.new_empty(batch, channels, height // 2, width // 2)
    return calling.empty_gradients([mask, a.grad], a.channels_last, a.needs)


_UPSAMPLE_ADD = define(reference.upsample_add, lambda a: _empty_large(a.mask.shape[1], a.mask, a.lateral))
differentiable(
    _UPSAMPLE_ADD,
    define(reference.upsample_add_backward, _upsample_add_backward_fake),
    inputs=("mask", "lateral"),
    results=("out",),
    derived=lambda a: _derived(a.mask, a.lateral),
    reads_result=lambda a: a.activation != "none",
    passed=lambda a: ("lateral",) if a.activation == "none" else (),
)


# Self-check

_MODES = (
    ("nearest", "zeros", "relu", True, torch.contiguous_format),
    ("bilinear", "replicate", "elu", False, torch.channels_last),
    ("bilinear_corners", "zeros", "leaky_relu", False, torch.contiguous_format),
    ("nearest", "replicate", "silu", False, torch.channels_last),
    ("bilinear", "zeros", "none", True, torch.contiguous_format),
)


def _size(mode: tuple[str, str, str, bool, torch.memory_format]) -> tuple[int, int]:
    """Of the mask in a case; the first is large enough for several threads."""
    return (21, 33) if mode is _MODES[0] else (4, 7)


def _merge_cases(random: Callable[..., Tensor], device: torch.device) -> Iterator[tuple[str, Case]]:
    for mode in _MODES:
        (height, width), (upsample, padding_mode, activation, mask_first, memory_format) = _size(mode), mode
        for skip_channels in (20, 0):
            skips = [random(2, skip_channels, 2 * height, 2 * width)] if skip_channels else []
            maps = [random(2, 9, height, width), *skips]
            maps = [x.contiguous(memory_format=memory_format) for x in maps]
            # Positive: no activation near 0, where rounding decides. Small: sums fit into fp16.
            inputs = [x.abs() / 4 for x in [*maps, random(6, 9 + skip_channels, 3, 3), random(6)]]
            options = {"mask_first": mask_first, "padding_mode": padding_mode}
            options |= {"upsample": upsample, "activation": activation}

            def run(backend: str, *inputs: Tensor, options: dict[str, Any] = options) -> Tensor:
                mask, *skip, weight, bias = inputs
                return upsample_merge(mask, skip[0] if skip else None, weight, bias, **options, backend=backend)

            yield f"{upsample}, {padding_mode}, {activation}, {skip_channels} skip channels", Case(inputs, run)


def _add_cases(random: Callable[..., Tensor], device: torch.device) -> Iterator[tuple[str, Case]]:
    for mode in _MODES:
        (height, width), (upsample, _, activation, _, memory_format) = _size(mode), mode
        for channels in (9, 1):
            maps = [random(2, channels, height, width), random(2, channels, 2 * height, 2 * width)]
            inputs = [x.abs().contiguous(memory_format=memory_format) for x in maps]
            options = {"upsample": upsample, "activation": activation}

            def run(backend: str, *inputs: Tensor, options: dict[str, Any] = options) -> Tensor:
                mask, lateral = inputs
                return upsample_add(mask, lateral, **options, backend=backend)

            yield f"{upsample}, {activation}, {channels} channels", Case(inputs, run)


CASES = {"upsample_merge": _merge_cases, "upsample_add": _add_cases}

"""upsample_merge and upsample_add by Triton kernels, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ... import layout
from ..needs import UpsampleAddNeeds, UpsampleMergeNeeds
from ..reference.decoder import activation_backward
from . import tuning
from .convolutions import (
    MOST_CHANNELS,
    Convolution,
    bias_gradient,
    columns_of,
    contraction_of,
    formatted,
    input_gradients,
    pixels_of,
    weight_sums,
)
from .device import INTERPRETED
from .gather_windows import GATHER_TILE
from .launch import FUSED, as_map, as_pixels, launcher, tiles

WIDEST = 2 * MOST_CHANNELS
"""Outputs of one program of upsample_merge, at most: its layers are wide, and a wide product loads less."""

ENOUGH = 2 if INTERPRETED else 256
"""Programs that fill a GPU. Where there are as many, each works on all four phases: see kernels/decoder.py."""

TILE = 64
"""Pixels by which programs are counted: those of the first configuration."""

COMPOSED = 1024
"""Composite weights that one program makes."""


def _places(mask_channels: int, skip_channels: int, mask_first: bool) -> tuple[int, int]:
    """The first channels of mask and skip in the weight."""
    return (0, mask_channels) if mask_first else (skip_channels, 0)


def _channels(x: Tensor | None) -> int:
    return 0 if x is None else x.shape[1]


@launcher
def upsample_merge(
    mask: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    mask_first: bool,
    upsample: str,
    padding_mode: str,
    activation: str,
) -> Tensor:
    from .kernels import decoder as kernels

    batch, channels, height, width = mask.shape
    outputs, skip_channels = weight.shape[0], _channels(skip)
    memory_format = layout.memory_format(*(x for x in (mask, skip) if x is not None))
    out = layout.empty((batch, outputs, 2 * height, 2 * width), mask, memory_format)
    pixels = pixels_of(out)
    if pixels == 0:
        return out
    convolution = Convolution(weight, bias, padding_mode)
    weights, biases = convolution.pointers()
    first, first_skip = _places(channels, skip_channels, mask_first)
    composite = composed(weights, first, channels) if upsample == "nearest" else None
    columns = columns_of(outputs, WIDEST)
    phases = 4 if upsample == "nearest" else 1
    each = phases if tiles(pixels // phases, TILE) * tiles(outputs, columns) >= ENOUGH else 1
    of_mask = contraction_of(channels, mask.dtype, 128)
    of_skip = contraction_of(max(1, skip_channels), mask.dtype, 128)
    chosen = tuning.chosen("decoder.forward", mask, channels + skip_channels, outputs)
    kernels.forward[(tiles(pixels // phases, chosen["PIXELS"]) * phases // each, tiles(outputs, columns))](
        as_pixels(mask),
        None if skip is None else as_pixels(skip),
        weights,
        composite,
        biases,
        as_map(out),
        pixels // phases,
        height,
        width,
        A=channels,
        B=skip_channels,
        FIRST_A=first,
        FIRST_B=first_skip,
        OUT=outputs,
        UPSAMPLE=upsample,
        ACTIVATION=activation,
        REPLICATE=convolution.replicate,
        PADDED_A=of_mask.padded,
        PADDED_B=of_skip.padded,
        K_A=of_mask.step,
        K_B=of_skip.step,
        PRECISION=of_mask.precision,
        EACH=each,
        N=columns,
        **chosen,
        **FUSED,
    )
    return out


def composed(weight: Tensor, first: int, channels: int) -> Tensor:
    """The composite weights, (outputs, channels, 4, 4), of a weight's channels from ``first`` on, in channels_last."""
    from .kernels import decoder as kernels

    out = layout.empty((weight.shape[0], channels, 4, 4), weight, torch.channels_last)
    elements = out.numel()
    kernels.compose[(tiles(elements, COMPOSED),)](
        weight, out, elements, FIRST=first, CHANNELS=weight.shape[1], A=channels, SIZE=COMPOSED, **FUSED
    )
    return out


@launcher
def upsample_merge_backward(
    grad: Tensor,
    out: Tensor | None,
    mask: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    mask_first: bool,
    upsample: str,
    padding_mode: str,
    activation: str,
    channels_last: bool,
    needs: Sequence[bool],
) -> list[Tensor]:
    wanted = UpsampleMergeNeeds(*needs)
    channels, skip_channels = mask.shape[1], _channels(skip)
    if activation == "none":
        grad = formatted(grad, torch.channels_last)
    else:
        grad = before_activation(grad, out, activation, torch.channels_last)
    convolution = Convolution(weight, None, padding_mode)
    gradients: list[Tensor | None] = []
    if wanted.mask:
        gradients.append(_mask_gradient(grad, convolution, channels, mask_first, upsample, channels_last))
    if wanted.skip:
        order = (channels, skip_channels) if mask_first else (skip_channels, channels)
        gradients += input_gradients(grad, convolution, order, channels_last, (not mask_first, mask_first))
    if wanted.weight:
        parts = [weight_sums(grad, (mask,), padding_mode, upsample)]
        if upsample == "nearest":
            parts = [_apart(parts[0])]
        if skip is not None:
            parts.append(weight_sums(grad, (skip,), padding_mode))
        joined = torch.cat(parts if mask_first else parts[::-1], 1)
        gradients.append(layout.empty(joined.shape, grad, layout.chosen(channels_last)).copy_(joined))
    if wanted.bias:
        gradients.append(bias_gradient(grad))
    return [gradient for gradient in gradients if gradient is not None]


def _mask_gradient(
    grad: Tensor, convolution: Convolution, channels: int, mask_first: bool, upsample: str, channels_last: bool
) -> Tensor | None:
    skip_channels = convolution.inputs - channels
    if upsample == "nearest":
        weight, _ = convolution.pointers()
        first, _ = _places(channels, skip_channels, mask_first)
        composite = Convolution(composed(weight, first, channels), None, convolution.padding_mode)
        return input_gradients(grad, composite, (channels,), channels_last, (True,), scale=2)[0]
    order = (channels, skip_channels) if mask_first else (skip_channels, channels)
    needs = (mask_first, not mask_first)
    d_upsampled = input_gradients(grad, convolution, order, True, needs)[0 if mask_first else 1]
    assert d_upsampled is not None
    return before_upsampling(d_upsampled, upsample, layout.chosen(channels_last))


def _apart(composite: Tensor) -> Tensor:
    """The gradient of the weight, (outputs, channels, 3, 3), from that of the composite weights."""
    rows = composite[:, :, 1:] + composite[:, :, :-1]
    return (rows[..., 1:] + rows[..., :-1]).flip(2, 3)


@launcher
def upsample_add(mask: Tensor, lateral: Tensor, upsample: str, activation: str) -> Tensor:
    from .kernels import decoder as kernels

    out = layout.empty(lateral.shape, lateral, layout.memory_format(mask, lateral))
    height, width = mask.shape[2:]
    options = {"UPSAMPLE": upsample, "ACTIVATION": activation}
    _elementwise(kernels.add, (mask, lateral), out, height, width, **options)
    return out


@launcher
def upsample_add_backward(
    grad: Tensor, out: Tensor | None, upsample: str, activation: str, channels_last: bool, needs: Sequence[bool]
) -> list[Tensor]:
    wanted = UpsampleAddNeeds(*needs)
    memory_format = layout.chosen(channels_last)
    d_sum = grad if activation == "none" else before_activation(grad, out, activation, memory_format)
    gradients = [before_upsampling(d_sum, upsample, memory_format)] if wanted.mask else []
    if wanted.lateral:
        gradients.append(d_sum.clone(memory_format=memory_format) if d_sum is grad else d_sum)
    return gradients


def before_activation(grad: Tensor, out: Tensor | None, activation: str, memory_format: torch.memory_format) -> Tensor:
    """The gradient before the activation that gave ``out``, in the memory format."""
    from .kernels import decoder as kernels

    if out is None or activation == "silu":
        return activation_backward(grad, out, activation)  # which refuses
    d_sum = layout.empty(grad.shape, grad, memory_format)
    _elementwise(kernels.activation_gradient, (grad, out), d_sum, *grad.shape[2:], ACTIVATION=activation)
    return d_sum


def before_upsampling(grad: Tensor, upsample: str, memory_format: torch.memory_format) -> Tensor:
    """The gradient of a map from the one of the map upsampled, in the memory format."""
    from .kernels import decoder as kernels

    batch, channels, height, width = grad.shape[0], grad.shape[1], grad.shape[2] // 2, grad.shape[3] // 2
    out = layout.empty((batch, channels, height, width), grad, memory_format)
    _elementwise(kernels.upsampling_gradient, (grad,), out, height, width, UPSAMPLE=upsample)
    return out


def _elementwise(kernel: Any, maps: Sequence[Tensor], out: Tensor, height: int, width: int, **options: str) -> None:
    """Launches a kernel that makes each element of ``out`` on its own, with the size that it wants."""
    pixels, channels = pixels_of(out), out.shape[1]
    if pixels == 0:
        return
    channels_last = layout.memory_format(out) == torch.channels_last
    cells, inner = GATHER_TILE.shape(pixels, channels, channels_last)
    kernel[(tiles(pixels, cells) * tiles(channels, inner),)](
        *map(as_map, maps),
        as_map(out),
        pixels,
        height,
        width,
        C=channels,
        CHANNELS_LAST=channels_last,
        CELLS=cells,
        CHANNELS=inner,
        **options,
        **FUSED,
    )

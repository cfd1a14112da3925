"""merge_upsample, add_upsample and refine by Triton kernels, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import layout
from ..needs import AddNeeds, MergeNeeds, RefineNeeds
from .convolutions import (
    Convolution,
    before_relu,
    bias_gradient,
    conv,
    conv_relu_upsample,
    convolution_gradients,
    formatted,
    input_gradients,
    weight_gradient,
)
from .launch import contiguous_pixels, launcher


@launcher
def merge_upsample(
    skip: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, upsample: str, padding_mode: str, save: bool
) -> tuple[Tensor, Tensor]:
    convolution = Convolution(weight, bias, padding_mode)
    return conv_relu_upsample((skip, mask), None, convolution, upsample, save, layout.memory_format(skip, mask))


@launcher
def merge_upsample_backward(
    grad: Tensor,
    active: Tensor,
    skip: Tensor,
    mask: Tensor,
    weight: Tensor,
    upsample: str,
    padding_mode: str,
    channels_last: bool,
    needs: Sequence[bool],
) -> list[Tensor]:
    grad = before_relu(grad, active, upsample)
    convolution = Convolution(weight, None, padding_mode)
    return _made(_merge_gradients(grad, skip, mask, convolution, channels_last, MergeNeeds(*needs)))


def _merge_gradients(
    grad: Tensor,
    skip: Tensor,
    mask: Tensor,
    convolution: Convolution,
    channels_last: bool,
    needs: MergeNeeds,
    activation: Tensor | None = None,
) -> list[Tensor | None]:
    """Gradients of skip, mask, weight and bias from the one before the ReLU."""
    channels = (skip.shape[1], mask.shape[1])
    return [
        *input_gradients(grad, convolution, channels, channels_last, (needs.skip, needs.mask), activation),
        weight_gradient(grad, (skip, mask), convolution.padding_mode, channels_last) if needs.weight else None,
        bias_gradient(grad) if needs.bias else None,
    ]


def _made(gradients: Sequence[Tensor | None]) -> list[Tensor]:
    return [gradient for gradient in gradients if gradient is not None]


@launcher
def add_upsample(
    horizontal: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, upsample: str, padding_mode: str, save: bool
) -> tuple[Tensor, Tensor]:
    convolution = Convolution(weight, bias, padding_mode)
    return conv_relu_upsample((mask,), horizontal, convolution, upsample, save, layout.memory_format(horizontal, mask))


@launcher
def add_upsample_backward(
    grad: Tensor,
    active: Tensor,
    mask: Tensor,
    weight: Tensor,
    upsample: str,
    padding_mode: str,
    channels_last: bool,
    needs: Sequence[bool],
) -> list[Tensor]:
    wanted = AddNeeds(*needs)
    grad = before_relu(grad, active, upsample)
    convolution = Convolution(weight, None, padding_mode)
    return _made(
        [
            formatted(grad, layout.chosen(channels_last)) if wanted.horizontal else None,
            *convolution_gradients(grad, mask, convolution, channels_last, wanted.convolution),
        ]
    )


@launcher
def refine(
    feature: Tensor,
    mask: Tensor,
    skip_weight: Tensor,
    skip_bias: Tensor | None,
    merge_weight: Tensor,
    merge_bias: Tensor | None,
    upsample: str,
    padding_mode: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    # Two launches. The backward needs the skip anyway, and reading back its few channels costs little beside reading
    # the feature's, the more so as they are still in the L2 cache.
    skip = conv(feature, Convolution(skip_weight, skip_bias, padding_mode), torch.channels_last, relu=True)
    merge = Convolution(merge_weight, merge_bias, padding_mode)
    memory_format = layout.memory_format(feature, mask)
    out, active = conv_relu_upsample((skip, mask), None, merge, upsample, save, memory_format)
    return out, formatted(skip, memory_format) if save else skip.new_empty(0), active


@launcher
def refine_backward(
    grad: Tensor,
    active: Tensor,
    skip: Tensor,
    feature: Tensor,
    mask: Tensor,
    skip_weight: Tensor,
    merge_weight: Tensor,
    upsample: str,
    padding_mode: str,
    channels_last: bool,
    needs: Sequence[bool],
) -> list[Tensor]:
    wanted = RefineNeeds(*needs)
    grad = before_relu(grad, active, upsample)
    merge = Convolution(merge_weight, None, padding_mode)
    d_skip, d_mask, d_merge_weight, d_merge_bias = _merge_gradients(
        grad, skip, mask, merge, channels_last, wanted.merge, activation=skip
    )
    d_feature = d_skip_weight = d_skip_bias = None
    if d_skip is not None:
        convolution = Convolution(skip_weight, None, padding_mode)
        d_feature, d_skip_weight, d_skip_bias = convolution_gradients(
            contiguous_pixels(d_skip), feature, convolution, channels_last, wanted.convolution
        )
    return _made([d_feature, d_mask, d_skip_weight, d_skip_bias, d_merge_weight, d_merge_bias])

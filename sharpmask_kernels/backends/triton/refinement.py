"""merge_upsample, add_upsample and refine by Triton kernels, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ... import layout
from .convolutions import (
    before_relu,
    bias_gradient,
    conv_relu,
    formatted,
    input_gradients,
    side_by_side,
    up2,
    weight_gradient,
)
from .launch import launcher

# merge_upsample, add_upsample, refine
#
# The kernels read maps whose channels lie side by side (channels_last and slices of it). Maps in PyTorch's contiguous
# layout are converted first, one extra pass over each, and outputs in that layout are written element by element
# instead of 8 or 16 bytes at a time: give channels_last maps, and channels_last weights, which are converted likewise.


@launcher
def merge_upsample(
    skip: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, upsample: str, padding_mode: str, save: bool
) -> tuple[Tensor, Tensor]:
    memory_format = layout.memory_format(skip, mask)
    return up2((skip, mask), None, weight, bias, upsample, padding_mode, save, memory_format)


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
    gradients = _merge_gradients(grad, skip, mask, weight, padding_mode, channels_last, needs)
    return [g for g in gradients if g is not None]


def _merge_gradients(
    grad: Tensor,
    skip: Tensor,
    mask: Tensor,
    weight: Tensor,
    padding_mode: str,
    channels_last: bool,
    needs: Sequence[bool],
    relu: Tensor | None = None,
) -> list[Tensor | None]:
    """Gradients of skip, mask, weight and bias from the one before the ReLU."""
    channels = (skip.shape[1], mask.shape[1])
    return [
        *input_gradients(grad, weight, channels, padding_mode, channels_last, needs[:2], relu),
        weight_gradient(grad, (skip, mask), padding_mode, channels_last) if needs[2] else None,
        bias_gradient(grad) if needs[3] else None,
    ]


@launcher
def add_upsample(
    horizontal: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, upsample: str, padding_mode: str, save: bool
) -> tuple[Tensor, Tensor]:
    memory_format = layout.memory_format(horizontal, mask)
    return up2((mask,), horizontal, weight, bias, upsample, padding_mode, save, memory_format)


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
    grad = before_relu(grad, active, upsample)
    gradients = [
        formatted(grad, layout.chosen(channels_last)) if needs[0] else None,
        *input_gradients(grad, weight, (mask.shape[1],), padding_mode, channels_last, needs[1:2]),
        weight_gradient(grad, (mask,), padding_mode, channels_last) if needs[2] else None,
        bias_gradient(grad) if needs[3] else None,
    ]
    return [g for g in gradients if g is not None]


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
    # Two launches: the skip is kept for the backward anyway, and to read back its few channels is little beside the
    # feature's, the more so as they are still in the L2 cache.
    skip = conv_relu(feature, skip_weight, skip_bias, padding_mode)
    memory_format = layout.memory_format(feature, mask)
    out, active = up2((skip, mask), None, merge_weight, merge_bias, upsample, padding_mode, save, memory_format)
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
    grad = before_relu(grad, active, upsample)
    below = any(needs[i] for i in (0, 2, 3))  # feature, skip_weight, skip_bias: all behind the skip
    wanted = [below, *(needs[i] for i in (1, 4, 5))]
    d_skip, d_mask, d_merge_weight, d_merge_bias = _merge_gradients(
        grad, skip, mask, merge_weight, padding_mode, channels_last, wanted, skip
    )
    d_feature = d_skip_weight = d_skip_bias = None
    if d_skip is not None:
        d_skip = side_by_side(d_skip)
        (d_feature,) = input_gradients(d_skip, skip_weight, (feature.shape[1],), padding_mode, channels_last, needs[:1])
        d_skip_weight = weight_gradient(d_skip, (feature,), padding_mode, channels_last) if needs[2] else None
        d_skip_bias = bias_gradient(d_skip) if needs[3] else None
    gradients = [d_feature, d_mask, d_skip_weight, d_skip_bias, d_merge_weight, d_merge_bias]
    return [g for g in gradients if g is not None]


# gather_windows

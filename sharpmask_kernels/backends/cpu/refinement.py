"""merge_upsample, add_upsample and refine on CPUs, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ... import layout
from ..needs import AddNeeds, MergeNeeds, ParameterNeeds, RefineNeeds
from . import steps
from .convolutions import Convolution


class MergeGradients(NamedTuple):
    skip: Tensor | None
    mask: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def _asked_for(*gradients: Tensor | None) -> list[Tensor]:
    return [gradient for gradient in gradients if gradient is not None]


# merge_upsample


def merge_upsample(
    skip: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, upsample: str, padding_mode: str, save: bool
) -> tuple[Tensor, Tensor]:
    memory_format = layout.memory_format(skip, mask)
    merge = Convolution(weight, bias)
    return steps.merge((skip, mask), None, merge, upsample, padding_mode, save, memory_format)


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
    grad = steps.upsample_gradient(grad, active, upsample, channels_last)
    return _asked_for(*_merge_gradients(grad, skip, mask, weight, padding_mode, channels_last, MergeNeeds(*needs)))


def _merge_gradients(
    grad: Tensor,
    skip: Tensor,
    mask: Tensor,
    weight: Tensor,
    padding_mode: str,
    channels_last: bool,
    needs: MergeNeeds,
    relu: Tensor | None = None,
) -> MergeGradients:
    """From the gradient before the ReLU. ``relu``: the skip, if its gradient is to be the one before its own ReLU."""
    d_skip = d_mask = None
    if needs.skip:
        of_skip = weight[:, : skip.shape[1]]
        d_skip = steps.input_gradient(grad, of_skip, skip, padding_mode, channels_last, relu)
    if needs.mask:
        d_mask = steps.input_gradient(grad, weight[:, skip.shape[1] :], mask, padding_mode, channels_last)
    parameters = ParameterNeeds(needs.weight, needs.bias)
    return MergeGradients(
        d_skip, d_mask, *steps.parameter_gradients(grad, (skip, mask), padding_mode, channels_last, parameters)
    )


# add_upsample


def add_upsample(
    horizontal: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, upsample: str, padding_mode: str, save: bool
) -> tuple[Tensor, Tensor]:
    memory_format = layout.memory_format(horizontal, mask)
    vertical = Convolution(weight, bias)
    return steps.merge((mask,), horizontal, vertical, upsample, padding_mode, save, memory_format)


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
    asked = AddNeeds(*needs)
    grad = steps.upsample_gradient(grad, active, upsample, channels_last)
    memory_format = layout.chosen(channels_last)
    d_horizontal = grad.to(mask.dtype).contiguous(memory_format=memory_format) if asked.horizontal else None
    d_mask = steps.input_gradient(grad, weight, mask, padding_mode, channels_last) if asked.mask else None
    parameters = ParameterNeeds(asked.weight, asked.bias)
    return _asked_for(
        d_horizontal, d_mask, *steps.parameter_gradients(grad, (mask,), padding_mode, channels_last, parameters)
    )


# refine


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
    memory_format = layout.memory_format(feature, mask)
    skip = steps.skip(feature, Convolution(skip_weight, skip_bias), padding_mode, memory_format)
    merge = Convolution(merge_weight, merge_bias)
    out, active = steps.merge((skip, mask), None, merge, upsample, padding_mode, save, memory_format)
    return out, skip if save else skip.new_empty(0), active


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
    asked = RefineNeeds(*needs)
    grad = steps.upsample_gradient(grad, active, upsample, channels_last)
    merge = _merge_gradients(grad, skip, mask, merge_weight, padding_mode, channels_last, asked.merge, relu=skip)
    d_feature = d_skip_weight = d_skip_bias = None
    if merge.skip is not None:
        if asked.feature:
            d_feature = steps.input_gradient(merge.skip, skip_weight, feature, padding_mode, channels_last)
        parameters = ParameterNeeds(asked.skip_weight, asked.skip_bias)
        d_skip_weight, d_skip_bias = steps.parameter_gradients(
            merge.skip, (feature,), padding_mode, channels_last, parameters
        )
    return _asked_for(d_feature, merge.mask, d_skip_weight, d_skip_bias, merge.weight, merge.bias)

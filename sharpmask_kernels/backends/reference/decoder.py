"""upsample_merge and upsample_add in plain PyTorch, forward and backward.

A gradient is made from the result: the derivatives of ReLU, leaky ReLU and ELU follow from it. That of SiLU does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import layout
from ..needs import UpsampleMergeNeeds
from .refinement import apart, asked, conv3x3, conv3x3_backward, up2, up2_backward

LEAK = 0.01
"""The slope of leaky ReLU below 0."""

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "elu": F.elu,
    "leaky_relu": lambda x: F.leaky_relu(x, LEAK),
    "silu": F.silu,
    "none": lambda x: x,
}


def activated(x: Tensor, activation: str) -> Tensor:
    return _ACTIVATIONS[activation](x)


def activation_backward(grad: Tensor, out: Tensor | None, activation: str) -> Tensor:
    """The gradient before the activation that gave ``out``, which "none" does not read."""
    if activation == "none":
        return grad
    if activation == "silu" or out is None:
        raise NotImplementedError(f"the gradient of {activation} needs more than its result")
    if activation == "relu":
        return torch.where(out <= 0, 0, grad)
    slope = LEAK if activation == "leaky_relu" else out + 1
    return torch.where(out > 0, grad, grad * slope)


def joined(mask: Tensor, skip: Tensor | None, mask_first: bool) -> Tensor:
    """The maps beside each other, of the same size."""
    if skip is None:
        return mask
    return torch.cat([mask, skip] if mask_first else [skip, mask], dim=1)


def maps_of(mask: Tensor, skip: Tensor | None) -> list[Tensor]:
    return [mask] if skip is None else [mask, skip]


# upsample_merge


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
    merged = conv3x3(joined(up2(mask, upsample), skip, mask_first), weight, bias, padding_mode)
    return layout.arranged(activated(merged, activation), layout.memory_format(*maps_of(mask, skip)))


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
    asked_for = UpsampleMergeNeeds(*needs)
    grad = activation_backward(grad, out, activation)
    large = joined(up2(mask, upsample), skip, mask_first)
    d_large, d_weight, d_bias = conv3x3_backward(grad, large, weight, padding_mode, asked_for.convolution)
    d_mask = d_skip = None
    if d_large is not None:
        d_up, d_skip = split_gradient(d_large, mask.shape[1], mask_first)
        d_mask = up2_backward(d_up, upsample).to(mask.dtype) if asked_for.mask else None
    return asked([d_mask, d_skip, d_weight, d_bias], needs, channels_last)


def split_gradient(grad: Tensor, mask_channels: int, mask_first: bool) -> list[Tensor]:
    """The parts of the upsampled mask and of the skip, which may have no channels, of a gradient of both."""
    skip_channels = grad.shape[1] - mask_channels
    if mask_first:
        return apart(grad, [mask_channels, skip_channels], dim=1)
    return apart(grad, [skip_channels, mask_channels], dim=1)[::-1]


# upsample_add


def upsample_add(mask: Tensor, lateral: Tensor, upsample: str, activation: str) -> Tensor:
    return layout.arranged(activated(up2(mask, upsample) + lateral, activation), layout.memory_format(mask, lateral))


def upsample_add_backward(
    grad: Tensor, out: Tensor | None, upsample: str, activation: str, channels_last: bool, needs: Sequence[bool]
) -> list[Tensor]:
    d_sum = activation_backward(grad, out, activation)
    d_mask = up2_backward(d_sum, upsample).to(grad.dtype) if needs[0] else None
    return asked([d_mask, d_sum.clone() if d_sum is grad else d_sum], needs, channels_last)

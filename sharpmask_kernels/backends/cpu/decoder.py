"""upsample_merge and upsample_add on CPUs, forward and backward.

Each step takes the fastest route for its size (:mod:`.routes`). By tiles, a kernel computes all of upsample_merge
(:mod:`.merging`). By phases, a 3x3 convolution of a map that was upsampled by "nearest" is four 2x2 convolutions of the
small map, one for each of the four cells that a cell becomes: 16 products for 36. PyTorch's library computes these four
as one, and the skip's convolution; a kernel adds them up. By the library, it is one convolution of the joined maps.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import _cpu, layout
from ..native import optional_view, view
from ..needs import ConvNeeds, ParameterNeeds, UpsampleAddNeeds, UpsampleMergeNeeds
from ..reference import decoder as reference
from ..reference.refinement import conv3x3, conv3x3_backward, replicate, replicate_backward, up2, up2_backward
from . import merging
from .convolutions import (
    ParameterGradients,
    is_wide,
    parameter_gradients,
    rounded,
    wide_dtype,
    wide_parameter_gradients,
)
from .routes import choose

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
    memory_format = layout.memory_format(*reference.maps_of(mask, skip))
    route = route_of("nearest", weight, mask, upsample, memory_format)
    if route != "library":
        batch, _, height, width = mask.shape
        out = layout.empty((batch, weight.shape[0], 2 * height, 2 * width), mask, memory_format)
        if route == "phases":
            _merge_phases(mask, skip, weight, bias, mask_first, padding_mode, activation, out)
            return out
        if merging.forward(mask, skip, weight, bias, mask_first, upsample, padding_mode, activation, out):
            return out
    return reference.upsample_merge(mask, skip, weight, bias, mask_first, upsample, padding_mode, activation)


def route_of(step: str, weight: Tensor, mask: Tensor, upsample: str, memory_format: torch.memory_format) -> str:
    """The route of a step (:mod:`.routes`). Phases are of "nearest" alone, and what is not in fp32 is the library's."""
    if mask.dtype != torch.float32 or mask.shape[0] == 0:
        return "library"
    route = choose(step, weight, mask, memory_format == torch.channels_last)
    return "library" if route == "phases" and upsample != "nearest" else route


def _merge_phases(
    mask: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    mask_first: bool,
    padding_mode: str,
    activation: str,
    out: Tensor,
) -> None:
    of_mask, of_skip = split_weight(weight, mask.shape[1], mask_first)
    lateral = None
    if skip is not None:
        lateral = conv3x3(skip, of_skip.contiguous(memory_format=torch.channels_last), bias, padding_mode)
    phases = convolve_phases(mask, of_mask, bias if skip is None else None, padding_mode)
    join_phases(phases, lateral, activation, out)


def split_weight(weight: Tensor, mask_channels: int, mask_first: bool) -> tuple[Tensor, Tensor]:
    """The parts of a weight that belong to the mask and to the skip."""
    if mask_first:
        return weight[:, :mask_channels], weight[:, mask_channels:]
    skip_channels = weight.shape[1] - mask_channels
    return weight[:, skip_channels:], weight[:, :skip_channels]


def convolve_phases(mask: Tensor, weight: Tensor, bias: Tensor | None, padding_mode: str) -> Tensor:
    """The four 2x2 convolutions as one: (batch, 4 outputs, height + 1, width + 1), as ``join_phases`` reads them."""
    weights = phase_weights(weight)
    biases = None if bias is None else bias.repeat(4)
    if padding_mode == "zeros":
        return F.conv2d(mask, weights, biases, padding=1)
    return F.conv2d(replicate(mask), weights, biases)


def phase_weights(weight: Tensor) -> Tensor:
    """(outputs, inputs, 3, 3) -> (4 outputs, inputs, 2, 2). Taps that read the same cell of the small map are added.

    In channels_last, in which PyTorch's library then computes, whatever the order of the map: it is the faster one.
    """
    outputs, inputs = weight.shape[:2]
    taps = weight.permute(2, 3, 0, 1)
    pairs = halves(halves(taps, 0), 1).view(2, 2, 2, 2, outputs, inputs)  # row phase, row, column phase, column
    return pairs.permute(0, 2, 4, 1, 3, 5).reshape(4 * outputs, 2, 2, inputs).permute(0, 3, 1, 2)


def halves(taps: Tensor, dim: int) -> Tensor:
    """Of three taps along a dimension the two with which each of two phases reads the small map."""
    first, middle, last = taps.unbind(dim)
    return torch.stack([first, middle + last, first + middle, last], dim)


def join_phases(phases: Tensor, lateral: Tensor | None, activation: str, out: Tensor) -> None:
    _cpu.join_phases(
        phases=view(phases),
        lateral=optional_view(lateral),
        activation=activation,
        out=view(out),
        threads=torch.get_num_threads(),
    )


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
    memory_format = layout.chosen(channels_last)
    grad = activation_gradient(grad, out, activation)
    of_mask, of_skip = split_weight(weight, mask.shape[1], mask_first)
    if route_of("mask", of_mask, mask, upsample, memory_format) == "tiles":
        return _gradients_by_tiles(
            grad, mask, skip, weight, mask_first, upsample, padding_mode, channels_last, asked_for
        )
    d_mask = d_skip = None
    if asked_for.mask:
        d_mask = mask_gradient(grad, mask, of_mask, upsample, padding_mode, memory_format)
    if skip is not None and asked_for.skip:
        d_skip = input_gradient(grad, skip, of_skip, padding_mode).contiguous(memory_format=memory_format)
    gradients = [d_mask, d_skip, None, None]
    if asked_for.weight or asked_for.bias:
        maps = [up2(mask, upsample), *([] if skip is None else [skip])]
        parameters = ParameterNeeds(asked_for.weight, asked_for.bias)
        maps = maps if mask_first else maps[::-1]
        gradients[2:] = merged_parameter_gradients(grad, maps, weight, padding_mode, channels_last, parameters)
    return [gradient for gradient in gradients if gradient is not None]


def _gradients_by_tiles(
    grad: Tensor,
    mask: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    mask_first: bool,
    upsample: str,
    padding_mode: str,
    channels_last: bool,
    asked_for: UpsampleMergeNeeds,
) -> list[Tensor]:
    """From the gradient before the activation."""
    memory_format = layout.chosen(channels_last)
    of_mask, of_skip = split_weight(weight, mask.shape[1], mask_first)
    d_mask = d_skip = d_weight = d_bias = None
    if asked_for.mask:
        d_mask = mask_gradient(grad, mask, of_mask, upsample, padding_mode, memory_format)
    if skip is not None and asked_for.skip:
        d_skip = layout.empty(skip.shape, skip, memory_format)
        if not merging.skip_gradient(grad, of_skip, padding_mode, d_skip):
            d_skip.copy_(input_gradient(grad, skip, of_skip, padding_mode))
    if asked_for.weight or asked_for.bias:
        wide = wide_dtype(mask.dtype)
        d_weight = weight.new_empty(weight.shape, dtype=wide) if asked_for.weight else None
        d_bias = weight.new_empty(weight.shape[0], dtype=wide) if asked_for.bias else None
        merging.parameter_gradients(grad, mask, skip, mask_first, upsample, padding_mode, d_weight, d_bias)
    gradients = [d_mask, d_skip, *rounded(d_weight, d_bias, mask.dtype, channels_last)]
    return [gradient for gradient in gradients if gradient is not None]


def input_gradient(grad: Tensor, x: Tensor, weight: Tensor, padding_mode: str) -> Tensor:
    """The gradient of a convolution's input ``x``, by PyTorch's library."""
    found, _, _ = conv3x3_backward(grad, x, weight, padding_mode, ConvNeeds(True, False, False))
    return found


def mask_gradient(
    grad: Tensor,
    mask: Tensor,
    weight: Tensor,
    upsample: str,
    padding_mode: str,
    memory_format: torch.memory_format,
) -> Tensor:
    """The gradient of the map that is upsampled."""
    route = route_of("mask", weight, mask, upsample, memory_format)
    if route == "tiles":
        found = layout.empty(mask.shape, mask, memory_format)
        merging.mask_gradient(grad, weight, upsample, padding_mode, found)
    elif route == "phases":
        found = mask_gradient_by_phases(grad, mask, weight, padding_mode)
    else:
        found = upsampling_gradient(input_gradient(grad, up2(mask, upsample), weight, padding_mode), upsample)
    return found.contiguous(memory_format=memory_format)


def mask_gradient_by_phases(grad: Tensor, mask: Tensor, weight: Tensor, padding_mode: str) -> Tensor:
    zeros = padding_mode == "zeros"
    found, _, _ = torch.ops.aten.convolution_backward(
        split_phases(grad),
        mask if zeros else replicate(mask),
        phase_weights(weight),
        None,
        stride=[1, 1],
        padding=[1, 1] if zeros else [0, 0],
        dilation=[1, 1],
        transposed=False,
        output_padding=[0, 0],
        groups=1,
        output_mask=[True, False, False],
    )
    return found if zeros else replicate_backward(found)


def split_phases(grad: Tensor) -> Tensor:
    """The opposite of ``join_phases``, with zeros where a phase has no cell."""
    batch, channels, height, width = grad.shape
    shape = (batch, 4 * channels, height // 2 + 1, width // 2 + 1)
    phases = layout.empty(shape, grad, layout.memory_format(grad)).zero_()
    for phase, (row, col) in enumerate(itertools.product((0, 1), repeat=2)):
        part = phases[:, phase * channels :, row : row + height // 2, col : col + width // 2]
        part[:, :channels] = grad[:, :, row::2, col::2]
    return phases


def merged_parameter_gradients(
    grad: Tensor,
    maps: Sequence[Tensor],
    weight: Tensor,
    padding_mode: str,
    channels_last: bool,
    needs: ParameterNeeds,
) -> ParameterGradients:
    """The gradients of the parameters of a convolution of the joined maps. PyTorch's library sums over threads."""
    grad = grad.to(wide_dtype(grad.dtype))
    if not is_wide(weight):
        return parameter_gradients(grad, maps, padding_mode, channels_last, needs)
    first, *rest = (
        wide_parameter_gradients(
            grad, x, padding_mode, (0, 0), channels_last, ParameterNeeds(needs.weight, needs.bias and i == 0)
        )
        for i, x in enumerate(maps)
    )
    if first.weight is None or not rest:
        return first
    joined = torch.cat([first.weight, *(other.weight for other in rest if other.weight is not None)], dim=1)
    return ParameterGradients(joined.contiguous(memory_format=layout.chosen(channels_last)), first.bias)


# upsample_add


def upsample_add(mask: Tensor, lateral: Tensor, upsample: str, activation: str) -> Tensor:
    out = layout.empty(lateral.shape, lateral, layout.memory_format(mask, lateral))
    _cpu.upsample_add(
        mask=view(mask),
        lateral=view(lateral),
        upsample=upsample,
        activation=activation,
        out=view(out),
        threads=torch.get_num_threads(),
    )
    return out


def upsample_add_backward(
    grad: Tensor, out: Tensor | None, upsample: str, activation: str, channels_last: bool, needs: Sequence[bool]
) -> list[Tensor]:
    asked_for = UpsampleAddNeeds(*needs)
    memory_format = layout.chosen(channels_last)
    d_sum = activation_gradient(grad, out, activation)
    d_mask = d_lateral = None
    if asked_for.mask:
        d_mask = upsampling_gradient(d_sum, upsample).contiguous(memory_format=memory_format)
    if asked_for.lateral:
        d_lateral = d_sum.contiguous(memory_format=memory_format)
        d_lateral = d_lateral.clone() if d_lateral is grad else d_lateral
    return [gradient for gradient in (d_mask, d_lateral) if gradient is not None]


def activation_gradient(grad: Tensor, out: Tensor | None, activation: str) -> Tensor:
    """The gradient before the activation that gave ``out``: by PyTorch's kernels, of one pass."""
    if out is None or activation in ("none", "silu"):
        return reference.activation_backward(grad, out, activation)
    if activation == "relu":
        return torch.ops.aten.threshold_backward(grad, out, 0)
    if activation == "elu":
        return torch.ops.aten.elu_backward(grad, 1, 1, 1, True, out)
    return torch.ops.aten.leaky_relu_backward(grad, out, reference.LEAK, True)


def upsampling_gradient(grad: Tensor, upsample: str) -> Tensor:
    """The gradient of the map before it was upsampled."""
    if upsample == "bilinear_corners":
        return up2_backward(grad, upsample).to(grad.dtype)
    batch, channels, height, width = grad.shape
    out = layout.empty((batch, channels, height // 2, width // 2), grad, layout.memory_format(grad))
    _cpu.upsample_gradient(
        grad=view(grad), active=None, nearest=upsample == "nearest", out=view(out), threads=torch.get_num_threads()
    )
    return out

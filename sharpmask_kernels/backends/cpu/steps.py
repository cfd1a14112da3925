"""The steps of the refinement ops, each by the route that is fastest for its size (:mod:`.routes`).

- ``rows``: row by row in the first cache, the rest of the op included;
- ``product``: as a product of matrices, or by tiles where these fill vectors, for many inputs and few outputs;
- ``tiles``: by Winograd's tiles, for many of both;
- ``library``: by PyTorch's convolution.

The gradients of weights have one route: PyTorch's would differ with the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import layout
from ..needs import ConvNeeds, ParameterNeeds
from ..reference.refinement import conv3x3, conv3x3_backward
from . import convolutions as by
from .convolutions import Convolution, ParameterGradients
from .routes import choose


def merge(
    inputs: Sequence[Tensor],
    addend: Tensor | None,
    convolution: Convolution,
    upsample: str,
    padding_mode: str,
    save: bool,
    memory_format: torch.memory_format,
) -> tuple[Tensor, Tensor]:
    """upsample2x(ReLU(conv of the joined ``inputs`` + addend)) and, if ``save``, the bits of the activations."""
    route = choose("merge", convolution.weight, inputs[0], memory_format == torch.channels_last)
    if route == "rows":
        return by.convolve_upsample(inputs, addend, convolution, upsample, padding_mode, save, memory_format)
    x = joined(inputs)
    sums = _by_tiles(x, convolution, padding_mode) if route == "tiles" else None
    if sums is None:
        sums = _by_library(x, convolution, padding_mode)
    if addend is not None:
        sums += addend
    return by.relu_upsample(sums, upsample, save, x.dtype, memory_format)


def joined(maps: Sequence[Tensor]) -> Tensor:
    return maps[0] if len(maps) == 1 else torch.cat(list(maps), dim=1)


def _by_tiles(x: Tensor, convolution: Convolution, padding_mode: str) -> Tensor | None:
    """None if results are not finite: they may have spread in their tile."""
    shape = (x.shape[0], convolution.weight.shape[0], *x.shape[2:])
    out = torch.empty(shape, dtype=by.wide_dtype(x.dtype), device=x.device, memory_format=torch.channels_last)
    return out if by.wide_convolution(x, *convolution, padding_mode, False, (0, 0), out) else None


def _by_library(x: Tensor, convolution: Convolution, padding_mode: str) -> Tensor:
    wide = by.wide_dtype(x.dtype)
    bias = convolution.bias
    return conv3x3(x.to(wide), convolution.weight.to(wide), None if bias is None else bias.to(wide), padding_mode)


def skip(feature: Tensor, convolution: Convolution, padding_mode: str, memory_format: torch.memory_format) -> Tensor:
    """ReLU(conv(feature))."""
    if choose("skip", convolution.weight, feature, memory_format == torch.channels_last) == "product":
        return by.feature_forward(feature, convolution, padding_mode, memory_format)
    out = _by_library(feature, convolution, padding_mode).relu_()
    return out.to(feature.dtype).contiguous(memory_format=memory_format)


def input_gradient(
    grad: Tensor, weight: Tensor, like: Tensor, padding_mode: str, channels_last: bool, relu: Tensor | None = None
) -> Tensor:
    """The gradient of the convolution's input ``like``.

    ``relu``: that input, if a ReLU made it. The gradient is then the one before this ReLU.
    """
    route = choose("input", weight, like, channels_last)
    if route == "rows":
        return by.input_gradient(grad, weight, like, padding_mode, channels_last, relu)
    if route == "product":
        out = by.feature_gradient(grad, weight, like, padding_mode, channels_last)
    else:
        out = _input_by_library(grad, weight, like, padding_mode)
        out = out.to(like.dtype).contiguous(memory_format=layout.chosen(channels_last))
    return out if relu is None else torch.ops.aten.threshold_backward(out, relu, 0)


def _input_by_library(grad: Tensor, weight: Tensor, like: Tensor, padding_mode: str) -> Tensor:
    wide = by.wide_dtype(like.dtype)
    needs = ConvNeeds(input=True, weight=False, bias=False)
    out, _, _ = conv3x3_backward(grad.to(wide), like.to(wide), weight.to(wide), padding_mode, needs)
    return out


def parameter_gradients(
    grad: Tensor, inputs: Sequence[Tensor], padding_mode: str, channels_last: bool, needs: ParameterNeeds
) -> ParameterGradients:
    """The gradients of the parameters of a convolution of the joined ``inputs``, of those that ``needs`` asks for."""
    if needs.weight and grad.shape[1] >= by.WIDE:  # tiles take one map
        inputs = (joined(inputs),)
    return by.parameter_gradients(grad, inputs, padding_mode, channels_last, needs)


def upsample_gradient(grad: Tensor, active: Tensor, upsample: str, channels_last: bool) -> Tensor:
    """The gradient before ReLU and upsampling, in the order in which most routes for so many outputs read it."""
    return by.upsample_gradient(grad, active, upsample, layout.chosen(reads_pixels(grad.shape[1], channels_last)))


def reads_pixels(channels: int, channels_last: bool) -> bool:
    """Whether gradients between two steps are channels_last."""
    return channels >= (16 if channels_last else by.WIDE)

"""The steps of the refinement ops on CPUs: 3x3 convolutions with what follows them, and their gradients.

Gradients between two steps are in fp32, or in fp64 for fp64 maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ... import _cpu, layout
from ..native import optional_view, view
from ..needs import ParameterNeeds


class Convolution(NamedTuple):
    weight: Tensor
    bias: Tensor | None


class ParameterGradients(NamedTuple):
    weight: Tensor | None
    bias: Tensor | None


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """What maps of this dtype are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def convolve_upsample(
    inputs: Sequence[Tensor],
    addend: Tensor | None,
    convolution: Convolution,
    upsample: str,
    padding_mode: str,
    save: bool,
    memory_format: torch.memory_format,
) -> tuple[Tensor, Tensor]:
    """upsample2x(ReLU(conv of the joined ``inputs`` + addend)) and, if ``save``, the bits of the activations."""
    batch, _, height, width = inputs[0].shape
    outputs = convolution.weight.shape[0]
    out = layout.empty((batch, outputs, 2 * height, 2 * width), inputs[0], memory_format)
    active = out.new_empty((batch, outputs, height, (width + 7) // 8) if save else (0,), dtype=torch.uint8)
    _cpu.convolve_upsample(
        inputs=[view(x) for x in inputs],
        addend=optional_view(addend),
        weight=view(convolution.weight),
        bias=optional_view(convolution.bias),
        zeros=padding_mode == "zeros",
        nearest=upsample == "nearest",
        out=view(out),
        active=view(active) if save else None,
        threads=torch.get_num_threads(),
    )
    return out, active


def relu_upsample(
    sums: Tensor, upsample: str, save: bool, dtype: torch.dtype, memory_format: torch.memory_format
) -> tuple[Tensor, Tensor]:
    """upsample2x(ReLU(sums)) in ``dtype`` and, if ``save``, the bits. ``sums``: in fp32 or fp64."""
    batch, outputs, height, width = sums.shape
    shape = (batch, outputs, 2 * height, 2 * width)
    out = torch.empty(shape, dtype=dtype, device=sums.device, memory_format=memory_format)
    active = out.new_empty((batch, outputs, height, (width + 7) // 8) if save else (0,), dtype=torch.uint8)
    _cpu.relu_upsample(
        sum=view(sums),
        nearest=upsample == "nearest",
        out=view(out),
        active=view(active) if save else None,
        threads=torch.get_num_threads(),
    )
    return out, active


def upsample_gradient(grad: Tensor, active: Tensor, upsample: str, memory_format: torch.memory_format) -> Tensor:
    """The gradient before ReLU and upsampling, (batch, outputs, height, width)."""
    batch, outputs, height, width = grad.shape
    shape = (batch, outputs, height // 2, width // 2)
    out = torch.empty(shape, dtype=wide_dtype(grad.dtype), device=grad.device, memory_format=memory_format)
    active = active.contiguous()
    _cpu.upsample_gradient(
        grad=view(grad),
        active=view(active),
        nearest=upsample == "nearest",
        out=view(out),
        threads=torch.get_num_threads(),
    )
    return out


def input_gradient(
    grad: Tensor, weight: Tensor, like: Tensor, padding_mode: str, channels_last: bool, relu: Tensor | None = None
) -> Tensor:
    """The gradient of the convolution's input ``like``.

    ``relu``: that input, if a ReLU made it. The gradient is then the one before this ReLU.
    """
    out = layout.empty(like.shape, like, layout.chosen(channels_last))
    input_gradient_into(grad, weight, padding_mode, out, relu)
    return out


def input_gradient_into(
    grad: Tensor, weight: Tensor, padding_mode: str, out: Tensor, relu: Tensor | None = None
) -> None:
    _cpu.input_gradient(
        grad=view(grad),
        weight=view(weight),
        zeros=padding_mode == "zeros",
        relu=optional_view(relu),
        out=view(out),
        threads=torch.get_num_threads(),
    )


def parameter_gradients(
    grad: Tensor, inputs: Sequence[Tensor], padding_mode: str, channels_last: bool, needs: ParameterNeeds
) -> ParameterGradients:
    """The gradients of the parameters of a convolution of the joined ``inputs``, of those that ``needs`` asks for."""
    if not any(needs):
        return ParameterGradients(None, None)
    outputs, dtype = grad.shape[1], inputs[0].dtype
    shape = (outputs, sum(x.shape[1] for x in inputs), 3, 3)
    weight = grad.new_empty(shape, dtype=wide_dtype(dtype)) if needs.weight else None
    bias = grad.new_empty(outputs, dtype=wide_dtype(dtype)) if needs.bias else None
    _cpu.weight_gradient(
        grad=view(grad),
        inputs=[view(x) for x in inputs],
        zeros=padding_mode == "zeros",
        weight=optional_view(weight),
        bias=optional_view(bias),
        threads=torch.get_num_threads(),
    )
    return rounded(weight, bias, dtype, channels_last)


def rounded(weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype, channels_last: bool) -> ParameterGradients:
    return ParameterGradients(
        None if weight is None else weight.to(dtype).contiguous(memory_format=layout.chosen(channels_last)),
        None if bias is None else bias.to(dtype),
    )


def feature_forward(
    feature: Tensor, convolution: Convolution, padding_mode: str, memory_format: torch.memory_format
) -> Tensor:
    """ReLU(conv(feature)), for a feature of many channels."""
    shape = (feature.shape[0], convolution.weight.shape[0], *feature.shape[2:])
    out = layout.empty(shape, feature, memory_format)
    _cpu.feature_forward(
        feature=view(feature),
        weight=view(convolution.weight),
        bias=optional_view(convolution.bias),
        zeros=padding_mode == "zeros",
        out=view(out),
        threads=torch.get_num_threads(),
    )
    return out


def feature_gradient(grad: Tensor, weight: Tensor, like: Tensor, padding_mode: str, channels_last: bool) -> Tensor:
    """The gradient of the feature ``like`` from that of its convolution."""
    out = layout.empty(like.shape, like, layout.chosen(channels_last))
    feature_gradient_into(grad, weight, padding_mode, out)
    return out


def feature_gradient_into(grad: Tensor, weight: Tensor, padding_mode: str, out: Tensor) -> None:
    _cpu.feature_gradient(
        grad=view(grad),
        weight=view(weight),
        zeros=padding_mode == "zeros",
        out=view(out),
        threads=torch.get_num_threads(),
    )


# Of many inputs and outputs, by tiles. They compute a part of a map, which may have other cells around.


WIDE = 24
"""Outputs from which on tiles pay for a convolution: fewer would leave vectors empty."""


def is_wide(weight: Tensor) -> bool:
    return weight.shape[0] >= WIDE


def _pixels(x: Tensor) -> Tensor:
    """``x``, or a copy, as tiles are read: in fp32 or fp64, with the channels of a cell side by side."""
    x = x.to(wide_dtype(x.dtype))
    return x if x.stride(1) == 1 else x.contiguous(memory_format=torch.channels_last)


def wide_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding_mode: str,
    relu: bool,
    corner: tuple[int, int],
    out: Tensor,
) -> bool:
    """Writes the part of a convolution that begins at cell ``corner`` of x to ``out``.

    Returns whether all of it is finite. What is not may have spread to cells beside it.
    """
    x = _pixels(x)
    return _cpu.wide_forward(
        input=view(x),
        weight=view(weight),
        bias=optional_view(bias),
        zeros=padding_mode == "zeros",
        relu=relu,
        top=corner[0],
        left=corner[1],
        out=view(out),
        threads=torch.get_num_threads(),
    )


def wide_parameter_gradients(
    grad: Tensor, x: Tensor, padding_mode: str, corner: tuple[int, int], channels_last: bool, needs: ParameterNeeds
) -> ParameterGradients:
    """From the gradient of the part that begins at cell ``corner`` of x."""
    if not any(needs):
        return ParameterGradients(None, None)
    dtype = x.dtype
    grad, x = _pixels(grad), _pixels(x)
    weight = grad.new_empty(grad.shape[1], x.shape[1], 3, 3) if needs.weight else None
    bias = grad.new_empty(grad.shape[1]) if needs.bias else None
    _cpu.wide_gradient(
        grad=view(grad),
        input=view(x),
        zeros=padding_mode == "zeros",
        top=corner[0],
        left=corner[1],
        weight=optional_view(weight),
        bias=optional_view(bias),
        threads=torch.get_num_threads(),
    )
    return rounded(weight, bias, dtype, channels_last)


Ends = tuple[bool, bool]
"""Whether a part of a map reaches the map's first and last row or column."""


def wide_feature_gradient_into(
    grad: Tensor, weight: Tensor, padding_mode: str, borders: tuple[Ends, Ends], out: Tensor
) -> None:
    """From the gradient of a part of a map that of the input around it: a cell more where the map does not end."""
    batch, _, height, width = grad.shape
    full = grad.new_empty((batch, out.shape[1], height + 2, width + 2)).contiguous(memory_format=torch.channels_last)
    wide_convolution(grad, weight.transpose(0, 1).flip(2, 3), None, "zeros", False, (-1, -1), full)
    for dim, ends in zip((2, 3), borders, strict=True):
        for end, beyond, last in zip(ends, (0, -1), (1, -2), strict=True):
            if end and padding_mode == "replicate":
                full.select(dim, last).add_(full.select(dim, beyond))
        full = full.narrow(dim, int(ends[0]), full.shape[dim] - sum(ends))
    out.copy_(full)

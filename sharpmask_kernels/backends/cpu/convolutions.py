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


def _wide(dtype: torch.dtype) -> torch.dtype:
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


def upsample_gradient(grad: Tensor, active: Tensor, upsample: str) -> Tensor:
    """The gradient before ReLU and upsampling, (batch, outputs, height, width)."""
    batch, outputs, height, width = grad.shape
    out = grad.new_empty((batch, outputs, height // 2, width // 2), dtype=_wide(grad.dtype))
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
    _cpu.input_gradient(
        grad=view(grad),
        weight=view(weight),
        zeros=padding_mode == "zeros",
        relu=optional_view(relu),
        out=view(out),
        threads=torch.get_num_threads(),
    )
    return out


def parameter_gradients(
    grad: Tensor, inputs: Sequence[Tensor], padding_mode: str, channels_last: bool, needs: ParameterNeeds
) -> ParameterGradients:
    """The gradients of the parameters of a convolution of the joined ``inputs``, of those that ``needs`` asks for."""
    if not any(needs):
        return ParameterGradients(None, None)
    outputs, dtype = grad.shape[1], inputs[0].dtype
    shape = (outputs, sum(x.shape[1] for x in inputs), 3, 3)
    weight = grad.new_empty(shape, dtype=_wide(dtype)) if needs.weight else None
    bias = grad.new_empty(outputs, dtype=_wide(dtype)) if needs.bias else None
    _cpu.weight_gradient(
        grad=view(grad),
        inputs=[view(x) for x in inputs],
        zeros=padding_mode == "zeros",
        weight=optional_view(weight),
        bias=optional_view(bias),
        threads=torch.get_num_threads(),
    )
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
    _cpu.feature_gradient(
        grad=view(grad),
        weight=view(weight),
        zeros=padding_mode == "zeros",
        out=view(out),
        threads=torch.get_num_threads(),
    )
    return out

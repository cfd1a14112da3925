"""merge_upsample, add_upsample and refine on CPUs, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import layout
from .. import native
from .device import module


def _wide(dtype: torch.dtype) -> torch.dtype:
    """What is computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# merge_upsample, add_upsample, refine


def _typed(x: Tensor | None) -> tuple[int, ...]:
    return (0,) * 9 if x is None else (native.DTYPES[x.dtype], *native.map_of(x), x.shape[1])


def _size(x: Tensor) -> tuple[int, int, int]:
    return (x.shape[0], x.shape[2], x.shape[3])


def _dense(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """As the compiled module takes it for maps of ``dtype``."""
    return parameter.to(_wide(dtype)).contiguous()


def _parameters(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    weight = _dense(weight, dtype)
    return weight, weight.new_zeros(weight.shape[0]) if bias is None else _dense(bias, dtype)


def _layer(weight: Tensor, bias: Tensor | None) -> tuple[int, ...]:
    return (weight.data_ptr(), 0 if bias is None else bias.data_ptr(), weight.shape[1], weight.shape[0])


def _up2(
    inputs: Sequence[Tensor],
    addend: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    upsample: str,
    padding_mode: str,
    save: bool,
    memory_format: torch.memory_format,
) -> tuple[Tensor, Tensor]:
    """up2(ReLU(conv of the joined ``inputs`` + addend)) and the bits of the activations."""
    batch, height, width = _size(inputs[0])
    outputs = weight.shape[0]
    out = layout.empty((batch, outputs, 2 * height, 2 * width), inputs[0], memory_format)
    active = out.new_empty((batch, outputs, height, (width + 7) // 8) if save else (0,), dtype=torch.uint8)
    parameters = _parameters(weight, bias, out.dtype)
    module().convolve(
        (batch, height, width),
        [_typed(x) for x in inputs],
        _typed(addend),
        _layer(*parameters),
        padding_mode == "zeros",
        True,
        True,
        upsample == "nearest",
        _typed(out),
        active.data_ptr() if save else 0,
        torch.get_num_threads(),
    )
    return out, active


def _before_relu(grad: Tensor, active: Tensor, upsample: str) -> Tensor:
    """The gradient before the ReLU, (batch, outputs, height, width), in fp32 or fp64."""
    batch, outputs, height, width = grad.shape[0], grad.shape[1], grad.shape[2] // 2, grad.shape[3] // 2
    out = grad.new_empty((batch, outputs, height, width), dtype=_wide(grad.dtype))
    active = active.contiguous()
    module().before_relu(
        _size(out), _typed(grad), active.data_ptr(), upsample == "nearest", _typed(out), torch.get_num_threads()
    )
    return out


def _input_gradient(
    grad: Tensor, weight: Tensor, like: Tensor, padding_mode: str, channels_last: bool, relu: Tensor | None = None
) -> Tensor:
    """The gradient of the convolution's input ``like``; ``relu``: that input, if a ReLU made it."""
    out = layout.empty(like.shape, like, layout.chosen(channels_last))
    parameters = _parameters(weight.flip(2, 3).transpose(0, 1), None, grad.dtype)
    zeros = padding_mode == "zeros"
    threads = torch.get_num_threads()
    module().input_gradient(_size(grad), _typed(grad), _layer(*parameters), zeros, _typed(relu), _typed(out), threads)
    return out


def _parameter_gradients(
    grad: Tensor, inputs: Sequence[Tensor], padding_mode: str, channels_last: bool, needs: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients of weight and bias, of those that ``needs`` asks for."""
    outputs, dtype = grad.shape[1], inputs[0].dtype
    shape = (outputs, sum(x.shape[1] for x in inputs), 3, 3)
    weight = grad.new_empty(shape, dtype=_wide(dtype)) if needs[0] else None
    bias = grad.new_empty(outputs, dtype=_wide(dtype)) if needs[1] else None
    if any(needs):
        module().weight_gradient(
            _size(grad),
            _typed(grad),
            [_typed(x) for x in inputs],
            padding_mode == "zeros",
            0 if weight is None else weight.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            torch.get_num_threads(),
        )
    return [
        None if weight is None else weight.to(dtype).contiguous(memory_format=layout.chosen(channels_last)),
        None if bias is None else bias.to(dtype),
    ]


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
    first, second = weight.split([skip.shape[1], mask.shape[1]], dim=1)
    return [
        _input_gradient(grad, first, skip, padding_mode, channels_last, relu) if needs[0] else None,
        _input_gradient(grad, second, mask, padding_mode, channels_last) if needs[1] else None,
        *_parameter_gradients(grad, (skip, mask), padding_mode, channels_last, needs[2:]),
    ]


def merge_upsample(
    skip: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, upsample: str, padding_mode: str, save: bool
) -> tuple[Tensor, Tensor]:
    memory_format = layout.memory_format(skip, mask)
    return _up2((skip, mask), None, weight, bias, upsample, padding_mode, save, memory_format)


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
    grad = _before_relu(grad, active, upsample)
    gradients = _merge_gradients(grad, skip, mask, weight, padding_mode, channels_last, needs)
    return [g for g in gradients if g is not None]


def add_upsample(
    horizontal: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, upsample: str, padding_mode: str, save: bool
) -> tuple[Tensor, Tensor]:
    memory_format = layout.memory_format(horizontal, mask)
    return _up2((mask,), horizontal, weight, bias, upsample, padding_mode, save, memory_format)


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
    grad = _before_relu(grad, active, upsample)
    gradients = [
        grad.to(mask.dtype).contiguous(memory_format=layout.chosen(channels_last)) if needs[0] else None,
        _input_gradient(grad, weight, mask, padding_mode, channels_last) if needs[1] else None,
        *_parameter_gradients(grad, (mask,), padding_mode, channels_last, needs[2:]),
    ]
    return [g for g in gradients if g is not None]


def _skip(
    feature: Tensor, weight: Tensor, bias: Tensor | None, padding_mode: str, memory_format: torch.memory_format
) -> Tensor:
    """ReLU(conv(feature))."""
    out = layout.empty((feature.shape[0], weight.shape[0], *feature.shape[2:]), feature, memory_format)
    parameters = _parameters(weight, bias, out.dtype)
    zeros, threads = padding_mode == "zeros", torch.get_num_threads()
    module().convolve_feature(_size(feature), _typed(feature), _layer(*parameters), zeros, _typed(out), threads)
    return out


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
    skip = _skip(feature, skip_weight, skip_bias, padding_mode, memory_format)
    out, active = _up2((skip, mask), None, merge_weight, merge_bias, upsample, padding_mode, save, memory_format)
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
    below = [needs[i] for i in (0, 2, 3)]  # feature, skip_weight, skip_bias: all behind the skip
    wanted = [any(below), *(needs[i] for i in (1, 4, 5))]
    grad = _before_relu(grad, active, upsample)
    d_skip, d_mask, d_merge_weight, d_merge_bias = _merge_gradients(
        grad, skip, mask, merge_weight, padding_mode, channels_last, wanted, relu=skip
    )
    d_feature = d_skip_weight = d_skip_bias = None
    if d_skip is not None:
        d_feature, d_skip_weight, d_skip_bias = _skip_gradients(
            d_skip, feature, skip_weight, padding_mode, channels_last, below
        )
    gradients = [d_feature, d_mask, d_skip_weight, d_skip_bias, d_merge_weight, d_merge_bias]
    return [g for g, need in zip(gradients, needs, strict=True) if need and g is not None]


def _skip_gradients(
    grad: Tensor, feature: Tensor, weight: Tensor, padding_mode: str, channels_last: bool, needs: Sequence[bool]
) -> Sequence[Tensor | None]:
    """Gradients of feature, weight and bias from that of their convolution."""
    d_feature = None
    if needs[0]:
        d_feature = layout.empty(feature.shape, feature, layout.chosen(channels_last))
        parameters = _parameters(weight, None, grad.dtype)
        zeros, threads = padding_mode == "zeros", torch.get_num_threads()
        module().feature_gradient(_size(grad), _typed(grad), _layer(*parameters), zeros, _typed(d_feature), threads)
    return [d_feature, *_parameter_gradients(grad, (feature,), padding_mode, channels_last, needs[1:])]


# gather_windows


# refine_windows, encode_windows

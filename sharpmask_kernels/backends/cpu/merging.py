"""upsample_merge by tiles (see csrc/cpu/simd/winograd.h), forward and backward.

A ``grad`` is the one before the activation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _cpu
from ..native import optional_view, view


def forward(
    mask: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    mask_first: bool,
    upsample: str,
    padding_mode: str,
    activation: str,
    out: Tensor,
) -> bool:
    """Writes the result to ``out``. Returns whether all is finite before the activation: else it may have spread."""
    return _cpu.upsample_merge(
        mask=view(mask),
        skip=optional_view(skip),
        weight=view(weight),
        bias=optional_view(bias),
        mask_first=mask_first,
        upsample=upsample,
        zeros=padding_mode == "zeros",
        activation=activation,
        out=view(out),
        threads=torch.get_num_threads(),
    )


def mask_gradient(grad: Tensor, weight: Tensor, upsample: str, padding_mode: str, out: Tensor) -> None:
    """Writes the gradient of the upsampled mask to ``out``. ``weight``: of its channels."""
    _cpu.upsampled_gradient(
        grad=view(grad),
        weight=view(weight),
        upsample=upsample,
        zeros=padding_mode == "zeros",
        out=view(out),
        threads=torch.get_num_threads(),
    )


def skip_gradient(grad: Tensor, weight: Tensor, padding_mode: str, out: Tensor) -> bool:
    """Writes the gradient of the skip to ``out``, and returns as ``forward``. ``weight``: of its channels."""
    return _cpu.wide_input_gradient(
        grad=view(grad),
        weight=view(weight),
        zeros=padding_mode == "zeros",
        out=view(out),
        threads=torch.get_num_threads(),
    )


def parameter_gradients(
    grad: Tensor,
    mask: Tensor,
    skip: Tensor | None,
    mask_first: bool,
    upsample: str,
    padding_mode: str,
    weight: Tensor | None,
    bias: Tensor | None,
) -> None:
    """Writes the gradients of a weight and a bias, in fp32 (fp64), to ``weight`` and ``bias``."""
    _cpu.upsample_merge_gradient(
        grad=view(grad),
        mask=view(mask),
        skip=optional_view(skip),
        mask_first=mask_first,
        upsample=upsample,
        zeros=padding_mode == "zeros",
        weight=optional_view(weight),
        bias=optional_view(bias),
        threads=torch.get_num_threads(),
    )

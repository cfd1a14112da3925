"""What the ops share: autocast, export, the type of a convolution's parameters, and fake gradients."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .. import layout

ConvParameters = tuple[Tensor, Tensor | None]
"""Weight and bias of a convolution."""
PAIR = "a pair (weight, bias)"


def exporting() -> bool:
    """Whether the call becomes part of an exported graph, which must hold plain PyTorch operations only.

    ONNX's exporters either export or trace. Asking torch.onnx takes longer than all the rest of a call's checks.
    """
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def autocast_dtype(x: object) -> torch.dtype | None:
    """The dtype that a convolution of ``x`` would have under autocast; None where autocast changes nothing."""
    if not isinstance(x, Tensor) or x.dtype == torch.float64 or x.device.type == "meta":
        return None
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def cast(dtype: torch.dtype | None, *inputs: Any) -> tuple[Any, ...]:
    """The inputs with floating-point tensors in ``dtype``; fp64 and what is no such tensor stay as they are."""
    if dtype is None:
        return inputs
    castable = (isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64 for x in inputs)
    return tuple(x.to(dtype) if yes else x for x, yes in zip(inputs, castable, strict=True))


def after_cast(like: Tensor, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Turns autocast off, because the inputs have been cast to ``dtype`` already; None: autocast was off."""
    return nullcontext() if dtype is None else torch.autocast(like.device.type, enabled=False)


def empty_gradients(inputs: Sequence[Tensor | None], channels_last: bool, needs: Sequence[bool]) -> list[Tensor]:
    """Uninitialised gradients of the inputs that ``needs`` asks for."""
    return [
        layout.empty(x.shape, x, layout.chosen(channels_last and x.ndim == 4))
        for x, need in zip(inputs, needs, strict=True)
        if need and x is not None
    ]


def bias_of(weight: Tensor) -> Tensor:
    """A tensor like the bias that belongs to ``weight``."""
    return weight[:, 0, 0, 0]

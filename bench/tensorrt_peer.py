"""TensorRT as a peer: plain PyTorch compiled by torch_tensorrt (`pip install torch-tensorrt`)."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .workloads.base import Plain


def missing() -> str | None:
    """Why it cannot run here, or None."""
    if importlib.util.find_spec("torch_tensorrt") is None:
        return "torch_tensorrt is not installed"
    return None if torch.cuda.is_available() else "PyTorch finds no CUDA device"


def obstacle(module: Plain, training: bool) -> str | None:
    """Why it cannot run ``module``, with gradients if ``training``, or None."""
    if reason := missing():
        return reason
    if training:
        return "TensorRT computes no gradients"
    return None if module.traceable else "there are no layers to run, only a loop over windows"


def prepare(module: nn.Module, example: tuple[Tensor, ...]) -> Callable[..., Any]:
    """``module`` as one engine for inputs like ``example``, in their dtype. fp32 is not computed in TF32."""
    compiled: Callable[..., Any] = importlib.import_module("torch_tensorrt").compile(
        module.eval(),
        ir="dynamo",
        inputs=list(example),
        use_explicit_typing=True,
        disable_tf32=True,
        require_full_compilation=True,
        min_block_size=1,
    )
    return compiled

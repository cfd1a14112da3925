"""Devices that a user names."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from .errors import DataError

AUTO = "auto"
"""The name that stands for a GPU where PyTorch can use one, and else for the CPU."""


def usable_device(name: str) -> torch.device:
    """The device called ``name``, or the one that ``auto`` stands for.

    Raises ``DataError`` if PyTorch does not know it, the machine lacks it, or it cannot compute, as "meta" cannot.
    """
    if name == AUTO:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns of names that it once knew.
            device = torch.device(name)
            torch.ones(1, device=device).add(1).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise DataError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch with all its tensors on ``device``. The host does not wait for copies from pinned memory to a GPU."""
    if isinstance(batch, Tensor):
        pageable = device.type == "cuda" and batch.device.type == "cpu" and not batch.is_pinned()
        return (batch.pin_memory() if pageable else batch).to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {k: to_device(v, device) for k, v in batch.items()}
    if isinstance(batch, tuple):
        return type(batch)(*(to_device(v, device) for v in batch))
    return batch

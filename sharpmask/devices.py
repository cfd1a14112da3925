"""Devices that a user names."""

from __future__ import annotations

import warnings

import torch

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

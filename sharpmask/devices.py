"""Devices that a user names."""

from __future__ import annotations

import warnings

import torch

from .errors import DataError


def check_device(name: str) -> None:
    """Raise ``DataError`` as :func:`usable_device` does."""
    usable_device(name)


def usable_device(name: str) -> torch.device:
    """The device called ``name``.

    Raises ``DataError`` if PyTorch does not know it, the machine lacks it, or it cannot compute, as "meta" cannot.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns of names that it once knew.
            device = torch.device(name)
            torch.ones(1, device=device).add(1).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise DataError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device

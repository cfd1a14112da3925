"""What the backends of compiled modules, ``cpu`` and ``cuda``, share: how a module is loaded, and how it gets tensors.

A compiled module knows nothing of PyTorch: it takes addresses, sizes and strides. The caller holds the tensors until it
returns.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from .. import layout

PACKAGE = Path(__file__).parents[1]

DTYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}
"""The numbers of ``DType`` in ``csrc/common/half.h``."""


@functools.cache
def load(name: str) -> ModuleType | str:
    """The module ``sharpmask_kernels.<name>``, or why there is none.

    An install that could not build it wrote the reason to ``<name>_missing.txt``.
    """
    module, missing = f"sharpmask_kernels.{name}", PACKAGE / f"{name}_missing.txt"
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if missing.exists():
            return f"not compiled at installation: {missing.read_text().strip()}"
        if isinstance(error, ModuleNotFoundError):
            return f"{module} was not compiled for this Python; install the package with pip, with -e from a checkout"
        return f"{module} cannot be loaded: {error}"


def required(loaded: ModuleType | str) -> ModuleType:
    """What :func:`load` found. Raises ``RuntimeError`` if that is a reason."""
    if isinstance(loaded, str):
        raise RuntimeError(loaded)
    return loaded


def map_of(x: Tensor) -> tuple[int, ...]:
    """Address, height, width and strides of maps (batch, channels, height, width)."""
    return (x.data_ptr(), x.shape[2], x.shape[3], *x.stride())


def windows_of(*fields: Tensor) -> tuple[int, ...]:
    """Count, then the addresses of image, scale, row and col, each contiguous."""
    return (fields[0].shape[0], *(x.data_ptr() for x in fields))


# gather_windows is the same for both. ``last`` is the module's last argument: how many threads, or which stream.


def gather_windows(
    module: ModuleType,
    last: int,
    maps: Sequence[Tensor],
    image: Tensor,
    scale: Tensor,
    row: Tensor,
    col: Tensor,
    size: int,
    step: int,
) -> Tensor:
    batch, channels = maps[0].shape[:2]
    memory_format = layout.memory_format(*maps)
    out = layout.empty((image.shape[0], channels, size, size), maps[0], memory_format)
    windows = [x.contiguous() for x in (image, scale, row, col)]
    module.gather_windows(
        [map_of(m) for m in maps],
        windows_of(*windows),
        batch,
        channels,
        size,
        step,
        out.element_size(),
        memory_format == torch.channels_last,
        out.data_ptr(),
        last,
    )
    return out


def gather_windows_backward(
    module: ModuleType,
    last: int,
    grad: Tensor,
    image: Tensor,
    scale: Tensor,
    row: Tensor,
    col: Tensor,
    batch: int,
    heights: Sequence[int],
    widths: Sequence[int],
    channels_last: bool,
    needs: Sequence[bool],
    step: int,
) -> list[Tensor]:
    channels, size = grad.shape[1:3]
    gradients = [
        layout.empty((batch, channels, height, width), grad, layout.chosen(channels_last)) if need else None
        for height, width, need in zip(heights, widths, needs, strict=True)
    ]
    windows = [x.contiguous() for x in (image, scale, row, col)]
    module.gather_windows_backward(
        grad.data_ptr(),
        grad.stride(),
        DTYPES[grad.dtype],
        windows_of(*windows),
        batch,
        channels,
        size,
        step,
        [
            (0 if gradient is None else gradient.data_ptr(), height, width)
            for gradient, height, width in zip(gradients, heights, widths, strict=True)
        ],
        channels_last,
        last,
    )
    return [gradient for gradient in gradients if gradient is not None]

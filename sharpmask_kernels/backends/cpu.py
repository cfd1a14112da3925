"""The C++ kernels of ``csrc/``, for tensors on the CPU.

The compiled module ``sharpmask_kernels._cpu`` knows nothing of PyTorch: it takes addresses, sizes and strides, and the
number of threads. It is loaded when first asked for.
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
from ..windows import scaled_size
from .reference import logit

MODULE = "sharpmask_kernels._cpu"
MISSING = Path(__file__).parents[1] / "_cpu_missing.txt"
"""Written by an install that could not build the module; holds the reason."""

DTYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}
"""The numbers of ``DType`` in ``csrc/common/half.h``."""


@functools.cache
def _load() -> ModuleType | str:
    """The compiled module, or why there is none."""
    try:
        return importlib.import_module(MODULE)
    except ImportError as error:
        if MISSING.exists():
            return f"not compiled at installation: {MISSING.read_text().strip()}"
        if isinstance(error, ModuleNotFoundError):
            return f"{MODULE} was not compiled for this Python; install the package with pip, with -e from a checkout"
        return f"{MODULE} cannot be loaded: {error}"


def native() -> ModuleType:
    """The compiled module. Raises ``RuntimeError`` where :func:`unavailable` gives a reason."""
    loaded = _load()
    if isinstance(loaded, str):
        raise RuntimeError(loaded)
    return loaded


def unavailable() -> str | None:
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


def refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cpu":
        return f"maps on {device}: the cpu backend takes tensors on the CPU"
    if dtype not in DTYPES:
        return f"maps of dtype {dtype}: the cpu backend takes " + ", ".join(map(str, DTYPES))
    return None


def _map(x: Tensor) -> tuple[int, ...]:
    """Address, height, width and strides: what the compiled module knows of a map."""
    return (x.data_ptr(), x.shape[2], x.shape[3], *x.stride())


def _wide(dtype: torch.dtype) -> torch.dtype:
    """What is computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def gather_windows(
    maps: Sequence[Tensor], image: Tensor, scale: Tensor, row: Tensor, col: Tensor, size: int, step: int
) -> Tensor:
    batch, channels = maps[0].shape[:2]
    memory_format = layout.memory_format(*maps)
    out = layout.empty((image.shape[0], channels, size, size), maps[0], memory_format)
    # Held until the call is over: their addresses are.
    windows = [x.contiguous() for x in (image, scale, row, col)]
    native().gather_windows(
        [_map(m) for m in maps],
        (image.shape[0], *(x.data_ptr() for x in windows)),
        batch,
        channels,
        size,
        step,
        out.element_size(),
        memory_format == torch.channels_last,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def gather_windows_backward(
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
    native().gather_windows_backward(
        grad.data_ptr(),
        grad.stride(),
        DTYPES[grad.dtype],
        (image.shape[0], *(x.data_ptr() for x in windows)),
        batch,
        channels,
        size,
        step,
        [
            (0 if gradient is None else gradient.data_ptr(), height, width)
            for gradient, height, width in zip(gradients, heights, widths, strict=True)
        ],
        channels_last,
        torch.get_num_threads(),
    )
    return [gradient for gradient in gradients if gradient is not None]


def refine_windows(
    encoding: Tensor,
    horizontals: Sequence[Tensor],
    image: Tensor,
    scale: Tensor,
    row: Tensor,
    col: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    convs: Sequence[int],
    upsample: str,
    padding_mode: str,
    threshold: float | None,
    out: Tensor,
) -> None:
    windows = [x.contiguous() for x in (image, scale, row, col)]
    dtype = _wide(encoding.dtype)
    layers = [
        (w.to(dtype).contiguous(), w.new_zeros(w.shape[0], dtype=dtype) if b is None else b.to(dtype).contiguous())
        for w, b in zip(weights, biases, strict=True)
    ]
    native().refine_windows(
        DTYPES[encoding.dtype],
        _map(encoding),
        [_map(m) for m in horizontals],
        horizontals[0].shape[0] if horizontals else 0,
        (image.shape[0], *(x.data_ptr() for x in windows)),
        [(w.data_ptr(), b.data_ptr(), w.shape[1], w.shape[0]) for w, b in layers],
        list(convs),
        upsample == "nearest",
        padding_mode == "zeros",
        None if threshold is None else logit(threshold),
        out.data_ptr(),
        out.stride(),
        torch.get_num_threads(),
    )


def encode_windows(
    logits: Tensor,
    scale: Tensor,
    row: Tensor,
    col: Tensor,
    image_size: Sequence[int],
    scales: Sequence[float],
    threshold: float,
) -> tuple[Tensor, Tensor]:
    height, width = image_size
    ratios = [(h / height, w / width) for h, w in (scaled_size(height, width, s) for s in scales)]
    windows = [x.contiguous() for x in (scale, row, col)]
    counts, ends = native().encode_windows(
        DTYPES[logits.dtype],
        _map(logits[:, None]),
        (scale.shape[0], 0, *(x.data_ptr() for x in windows)),
        (height, width),
        [vertical for vertical, _ in ratios],
        [horizontal for _, horizontal in ratios],
        logit(threshold),
        torch.get_num_threads(),
    )
    return torch.frombuffer(bytearray(counts or b"\0"), dtype=torch.uint8)[: len(counts)], torch.tensor([0, *ends])

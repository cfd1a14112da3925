"""The CUDA kernels of ``csrc/cuda``, for NVIDIA GPUs.

The compiled module ``sharpmask_kernels._cuda`` knows nothing of PyTorch: it takes addresses, sizes and strides, and
the stream to run on, the current one of the tensors' device. It is loaded when first asked for. Nothing here waits
for the device but :func:`encode_windows`, which ends on the host.

Tests put a module in its place that a host compiler made of the same sources; it computes on tensors of the CPU.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import layout, rle
from ..windows import scaled_size
from .reference import logit

MODULE = "sharpmask_kernels._cuda"
MISSING = Path(__file__).parents[1] / "_cuda_missing.txt"
"""Written by an install that could not build the module; holds the reason."""

DTYPES = {torch.float32: 2, torch.float16: 0, torch.bfloat16: 1}
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
    """The compiled module. Raises ``RuntimeError`` where there is none."""
    loaded = _load()
    if isinstance(loaded, str):
        raise RuntimeError(loaded)
    return loaded


@functools.cache
def emulated() -> bool:
    """Whether the module computes on the CPU, for tests."""
    loaded = _load()
    return not isinstance(loaded, str) and bool(loaded.build_info()["emulated"])


@functools.cache
def unavailable() -> str | None:
    loaded = _load()
    if isinstance(loaded, str):
        return loaded
    if not emulated() and (torch.version.hip or not torch.cuda.is_available()):
        return "PyTorch finds no CUDA device"
    return None


def refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != ("cpu" if emulated() else "cuda"):
        return f"maps must be on a CUDA device on backend 'cuda', got {device}"
    if dtype not in DTYPES:
        first, second, third = DTYPES
        return f"maps must be of dtype {first}, {second} or {third} on backend 'cuda', got {dtype}"
    return None


def _on_device(op: Callable[..., Any]) -> Callable[..., Any]:
    """``op`` on the device of its tensors, whose current stream is its last argument."""

    @functools.wraps(op)
    def run(first: Any, *others: Any) -> Any:
        like = first if isinstance(first, Tensor) else first[0]
        if not like.is_cuda:
            return op(first, *others, 0)
        with torch.cuda.device_of(like):
            return op(first, *others, torch.cuda.current_stream().cuda_stream)

    return run


def _map(m: Tensor) -> tuple[int, ...]:
    return (m.data_ptr(), m.shape[2], m.shape[3], *m.stride())


@_on_device
def gather_windows(
    maps: Sequence[Tensor], image: Tensor, scale: Tensor, row: Tensor, col: Tensor, size: int, step: int, stream: int
) -> Tensor:
    batch, channels = maps[0].shape[:2]
    memory_format = layout.memory_format(*maps)
    out = layout.empty((image.shape[0], channels, size, size), maps[0], memory_format)
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
        stream,
    )
    return out


@_on_device
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
    stream: int,
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
        stream,
    )
    return [gradient for gradient in gradients if gradient is not None]


@_on_device
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
    stream: int,
) -> None:
    cascade = native().Cascade(
        encoding.shape[-1],
        encoding.shape[1],
        convs,
        [weight.shape[0] for weight in weights],
        upsample == "nearest",
        padding_mode == "zeros",
    )
    windows = [x.contiguous() for x in (image, scale, row, col)]
    fits = out.is_contiguous() and out.data_ptr() % 8 == 0
    dense = out if fits else torch.empty_like(out, memory_format=torch.contiguous_format)
    # On a GPU it may be used again as soon as this returns: only by what comes later in the stream.
    workspace = encoding.new_empty(native().refine_windows_workspace(cascade), dtype=torch.uint8)
    native().refine_windows(
        cascade,
        encoding.data_ptr(),
        encoding.stride(),
        DTYPES[encoding.dtype],
        [_map(m) for m in horizontals],
        (image.shape[0], *(x.data_ptr() for x in windows)),
        horizontals[0].shape[0],
        [_convolution(weight, bias) for weight, bias in zip(weights, biases, strict=True)],
        threshold is not None,
        0.0 if threshold is None else _float_below(logit(threshold)),
        dense.data_ptr(),
        workspace.data_ptr(),
        stream,
    )
    if dense is not out:
        out.copy_(dense)


def _convolution(weight: Tensor, bias: Tensor | None) -> tuple[int, ...]:
    return (
        weight.shape[0],
        weight.data_ptr(),
        *weight.stride(),
        0 if bias is None else bias.data_ptr(),
        0 if bias is None else bias.stride(0),
    )


def _float_below(x: float) -> float:
    """The largest fp32 number up to ``x``: one is greater than it if and only if it is greater than ``x``."""
    near = np.float32(x)
    return float(near if float(near) <= x else np.nextafter(near, np.float32(-math.inf)))


@_on_device
def encode_windows(
    logits: Tensor,
    scale: Tensor,
    row: Tensor,
    col: Tensor,
    image_size: Sequence[int],
    scales: Sequence[float],
    threshold: float,
    stream: int,
) -> tuple[Tensor, Tensor]:
    count, (height, width) = logits.shape[0], image_size
    sizes = [scaled_size(height, width, s) for s in scales]
    ratios = torch.tensor([(h / height, w / width) for h, w in sizes], dtype=torch.float64, device=logits.device)
    windows = [x.contiguous() for x in (scale, row, col)]
    found = logits.new_empty((count, native().encode_parts), dtype=torch.int64)

    def launch(starts: Tensor, edges: int) -> None:
        native().encode_windows(
            logits.data_ptr(),
            DTYPES[logits.dtype],
            logits.shape[:2],
            logits.stride(),
            [x.data_ptr() for x in windows],
            image_size,
            len(scales),
            ratios.data_ptr(),
            logit(threshold),
            starts.data_ptr(),
            edges,
            stream,
        )

    launch(found, 0)
    ends = found.flatten().cumsum(0).view_as(found)
    per_window = np.append(0, ends[:, -1].cpu().numpy())  # waits for the device
    edges = logits.new_empty(max(1, int(per_window[-1])), dtype=torch.int64)
    launch(ends - found, edges.data_ptr())
    positions = edges.cpu().numpy()
    counts = [
        rle.counts_to_bytes(np.diff(positions[first:last], prepend=0, append=height * width))
        for first, last in itertools.pairwise(per_window)
    ]
    offsets = torch.tensor(np.append(0, np.cumsum([len(c) for c in counts], dtype=np.int64)))
    return torch.frombuffer(bytearray(b"".join(counts) or b"\0"), dtype=torch.uint8)[: offsets[-1]], offsets

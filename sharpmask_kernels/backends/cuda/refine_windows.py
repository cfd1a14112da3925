"""The CUDA kernels of ``csrc/cuda``, for NVIDIA GPUs.

The compiled module ``sharpmask_kernels._cuda`` knows nothing of PyTorch: it takes addresses, sizes and strides, and
the stream to run on, the current one of the tensors' device. It is loaded when first asked for. Nothing here waits
for the device but :func:`encode_windows`, which ends on the host.

Tests put a module in its place that a host compiler made of the same sources; it computes on tensors of the CPU.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import rle
from ..windows import scaled_size
from . import compiled
from .reference import logit

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _load() -> ModuleType | str:
    return compiled.load("_cuda")


def native() -> ModuleType:
    """The compiled module. Raises ``RuntimeError`` where there is none."""
    return compiled.required(_load())


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


@_on_device
def gather_windows(
    maps: Sequence[Tensor], image: Tensor, scale: Tensor, row: Tensor, col: Tensor, size: int, step: int, stream: int
) -> Tensor:
    return compiled.gather_windows(native(), stream, maps, image, scale, row, col, size, step)


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
    places, sizes = (image, scale, row, col), (batch, heights, widths)
    return compiled.gather_windows_backward(native(), stream, grad, *places, *sizes, channels_last, needs, step)


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
        compiled.DTYPES[encoding.dtype],
        [compiled.map_of(m) for m in horizontals],
        compiled.windows_of(*windows),
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
            compiled.DTYPES[logits.dtype],
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

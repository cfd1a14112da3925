"""The CUDA kernels of ``csrc/cuda``, for NVIDIA GPUs.

The compiled module ``sharpmask_kernels._cuda`` knows nothing of PyTorch: it takes addresses, sizes and strides, and the
stream to run on, the current one of the tensors' device. It is loaded when it is first asked for. Nothing here waits
for the device but ``encode_windows``, which ends on the host.

Tests put a module in its place that a host compiler made of the same sources; it computes on tensors of the CPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...registry import Backend
from .. import native

if TYPE_CHECKING:
    from ... import _cuda
else:
    _cuda = native.LazyModule("_cuda")


def _load() -> ModuleType | str:
    return native.load("_cuda")


def module() -> ModuleType:
    """The compiled module. Raises ``RuntimeError`` where there is none."""
    return native.required(_load())


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


BACKEND = Backend(
    "cuda",
    ops=("gather_windows", "refine_windows", "encode_windows"),
    devices=("cuda",),
    dtypes=(torch.float32, torch.float16, torch.bfloat16),
    self_checked=True,
    unavailable=unavailable,
    simulated=emulated,
)


def on_device(op: Callable[..., Any]) -> Callable[..., Any]:
    """``op`` on the device of its tensors, whose current stream is its last argument."""

    @functools.wraps(op)
    def run(first: Any, *others: Any) -> Any:
        like = first if isinstance(first, Tensor) else first[0]
        if not like.is_cuda:
            return op(first, *others, 0)
        with torch.cuda.device_of(like):
            return op(first, *others, torch.cuda.current_stream().cuda_stream)

    return run

"""Triton kernels, for NVIDIA and AMD GPUs, or in Triton's interpreter.

The interpreter (``TRITON_INTERPRET=1`` in the environment before triton is imported) runs the same kernels on the CPU,
thousands of times slower: for tests. triton is imported when the first op runs.
"""

from __future__ import annotations

import functools
import importlib
import os

import torch

from ...registry import Backend

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
"""triton reads the variable when it is imported, so later changes have no effect."""


@functools.cache
def unavailable() -> str | None:
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return f"triton cannot be imported: {error}"
    if not INTERPRETED and not torch.cuda.is_available():
        return "PyTorch finds no CUDA or ROCm device, and TRITON_INTERPRET=1 is not set"
    return None


BACKEND = Backend(
    "triton",
    ops=(
        "merge_upsample",
        "refine",
        "add_upsample",
        "upsample_merge",
        "upsample_add",
        "gather_windows",
        "horizontal",
    ),
    devices=("cuda",),  # of PyTorch for ROCm, too
    dtypes=(torch.float32, torch.float16, torch.bfloat16),
    self_checked=True,
    unavailable=unavailable,
    simulated=lambda: INTERPRETED,
)

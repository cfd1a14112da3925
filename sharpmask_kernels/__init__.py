"""Differentiable ops for top-down mask refinement and top-N window gathering.

One meaning per op, several backends; today the PyTorch reference. See :mod:`sharpmask_kernels.functional`.
"""

from .functional import (
    add_upsample,
    encode_windows,
    gather_windows,
    merge_upsample,
    refine,
    refine_windows,
    topk_windows,
)
from .windows import Windows

__all__ = [
    "Windows",
    "add_upsample",
    "encode_windows",
    "gather_windows",
    "merge_upsample",
    "refine",
    "refine_windows",
    "topk_windows",
]

"""Differentiable ops for top-down mask refinement and top-N window gathering.

One meaning per op, several backends: :mod:`sharpmask_kernels.functional` has the ops,
:mod:`sharpmask_kernels.dispatch` tells which backend runs them.
"""

from . import verdicts
from .dispatch import available_backends
from .functional import (
    add_upsample,
    encode_windows,
    gather_windows,
    horizontal,
    inverted_residual,
    merge_upsample,
    refine,
    refine_windows,
    topk_windows,
    upsample_add,
    upsample_merge,
)
from .fuse import FuseReport, fuse, register_adapter
from .modules import Refinement
from .preferences import use_backend
from .windows import Windows

__version__ = verdicts.own_version()

__all__ = [
    "FuseReport",
    "Refinement",
    "Windows",
    "add_upsample",
    "available_backends",
    "encode_windows",
    "fuse",
    "gather_windows",
    "horizontal",
    "inverted_residual",
    "merge_upsample",
    "refine",
    "refine_windows",
    "register_adapter",
    "topk_windows",
    "upsample_add",
    "upsample_merge",
    "use_backend",
]

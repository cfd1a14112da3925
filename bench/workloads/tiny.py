"""Each op on a map of a few cells, where a call is all that takes time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from sharpmask_kernels import Windows, topk_windows

from .base import Plain, Workload
from .decoder import Level, UpsampleAdd, UpsampleMerge
from .encode_windows import EncodeWindows
from .gather_windows import GatherWindows
from .horizontal import Horizontal
from .inverted_residual import Block, InvertedResidual
from .refine_windows import RefineWindows
from .refinement import AddUpsample, MergeUpsample, Refine

SIDE = 4
"""Cells of a map's side."""

C = 4
"""Channels."""


def tiny() -> dict[str, Workload]:
    """By op."""
    maps: dict[str, tuple[int, Callable[[], Plain]]] = {
        "merge_upsample": (2, lambda: MergeUpsample(C, C, C)),
        "refine": (2, lambda: Refine(C, C, C, C)),
        "add_upsample": (2, lambda: AddUpsample(C, C)),
        "gather_windows": (1, lambda: GatherWindows(_window(), SIDE, 1)),
        "refine_windows": (2, lambda: RefineWindows(_window(), SIDE, [C, C])),
        "horizontal": (1, lambda: Horizontal(C, C)),
        "inverted_residual": (1, lambda: InvertedResidual(Block(C, C, C, 3, 1, 1))),
    }
    found = {op: _workload(op, module, [(1, C, SIDE, SIDE)] * count) for op, (count, module) in maps.items()}
    twice = [(1, C, SIDE, SIDE), (1, C, 2 * SIDE, 2 * SIDE)]
    logits = [(1, 4 * SIDE, 4 * SIDE)]
    others = [
        _workload("upsample_merge", lambda: UpsampleMerge(Level(C, C, C, 1), "relu"), twice),
        _workload("upsample_add", UpsampleAdd, twice),
        _workload("encode_windows", lambda: EncodeWindows(_window(), (SIDE, SIDE), [1.0]), logits),
    ]
    return found | {workload.op: workload for workload in others}


def _window() -> Windows:
    """The one window of an image."""
    return topk_windows([torch.zeros(1, 1, 1, 1)], 1)


def _workload(op: str, module: Callable[[], Plain], shapes: Sequence[tuple[int, ...]]) -> Workload:
    return Workload(op, "tiny", lambda device: module(), lambda randn: tuple(randn(*shape) for shape in shapes))

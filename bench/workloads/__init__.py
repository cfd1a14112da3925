"""What is measured: every op at the shapes that SharpMask has for it. Each op has a file here."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from . import decoder, encode_windows, gather_windows, horizontal, inverted_residual, refine_windows, refinement
from .base import FULL, SMALL, Sizes, Workload
from .shapes import LEVELS

__all__ = ["FULL", "LEVELS", "SMALL", "Sizes", "Workload", "forward", "workloads"]

DIFFERENTIABLE = ("merge_upsample", "refine", "add_upsample", "gather_windows", "upsample_merge", "upsample_add")


def workloads(sizes: Sizes) -> Iterator[Workload]:
    """Op by op. Each shape comes forward only and, where the op has gradients, with them."""
    patches = (horizontal.training(level, sizes.batch) for level in range(len(LEVELS)))
    for workload in forward(sizes):
        yield workload
        if workload.op in DIFFERENTIABLE:
            yield workload._replace(training=True)
        if workload.op == "horizontal":
            yield next(patches)


def forward(sizes: Sizes) -> list[Workload]:
    refinements = itertools.product(("merge_upsample", "refine", "add_upsample"), range(len(LEVELS)))
    small = sizes.photo < FULL.photo
    return [
        *(refinement.workload(op, level, sizes.batch) for op, level in refinements),
        *decoder.merges(small),
        *decoder.adds(small),
        *(gather_windows.workload(stage, count, sizes.photo) for stage in (0, 3) for count in sizes.windows),
        *(refine_windows.workload(count, sizes.photo) for count in sizes.windows),
        encode_windows.workload(sizes.windows[0], sizes.photo),
        *(horizontal.workload(level, sizes.photo) for level in range(len(LEVELS))),
        *(inverted_residual.workload(block, sizes.photo) for block in inverted_residual.BLOCKS),
    ]

"""What autotune chooses from.

The first launch of a kernel for new channel counts, modes or dtypes times its candidates and keeps the best; other
batches, heights and widths take the same one. Candidates differ in how many pixels a program takes, in warps and in
pipeline stages, never in the order of a sum, so the choice does not change a bit of the result. To pin the choice set
``SHARPMASK_AUTOTUNE=0`` before the first launch: the first candidate of each list is taken, nothing is timed. To pin
another one, set the kernel's own list: ``kernel.configs = [triton.Config(...)]``.

Under Triton's interpreter there is one candidate, so small that small maps cross the edges of tiles.
"""

from __future__ import annotations

import os

import triton

from ..device import INTERPRETED


def candidates(*choices: tuple[int, int, int], interpreted: int) -> list[triton.Config]:
    """From (pixels, warps, stages) each, the one that suits most machines first."""
    if INTERPRETED:
        return [triton.Config({"PIXELS": interpreted})]
    if os.environ.get("SHARPMASK_AUTOTUNE", "1") == "0":
        choices = choices[:1]
    return [triton.Config({"PIXELS": p}, num_warps=warps, num_stages=stages) for p, warps, stages in choices]

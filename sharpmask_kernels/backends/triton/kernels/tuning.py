"""The configurations that autotune chooses from.

The first launch of a kernel for new channel counts, modes or dtypes times its candidates and keeps the fastest. Other
batches, heights and widths take the same one. Candidates differ in the pixels of a program, in warps and in pipeline
stages, never in the order of a sum, so the choice does not change a bit of the result.

``SHARPMASK_AUTOTUNE=0`` before the first launch takes the first candidate of each list and times nothing. To take
another one, set the list of the kernel: ``kernel.configs = [triton.Config(...)]``.

Under Triton's interpreter there is one candidate, so small that small maps are cut into several tiles.
"""

from __future__ import annotations

import os

import triton

from ..device import INTERPRETED


def candidates(*choices: tuple[int, int, int], interpreted: int) -> list[triton.Config]:
    """Configurations from (pixels, warps, stages) each. The first suits most GPUs."""
    if INTERPRETED:
        return [triton.Config({"PIXELS": interpreted})]
    asked = os.environ.get("SHARPMASK_AUTOTUNE") or "1"
    if asked not in ("0", "1"):
        raise ValueError(f"SHARPMASK_AUTOTUNE must be 0 or 1, got {asked!r}")
    if asked == "0":
        choices = choices[:1]
    return [triton.Config({"PIXELS": p}, num_warps=warps, num_stages=stages) for p, warps, stages in choices]

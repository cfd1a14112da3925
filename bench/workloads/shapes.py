"""The shapes that SharpMask has, with a ResNet-50 trunk and k = 32 (SharpMask, section 3.2)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sharpmask_kernels import Windows, topk_windows
from sharpmask_kernels.windows import STRIDE, grid_size, scaled_size

from .base import Randn

WINDOW = 160
"""Pixels on a window's side."""

CELLS = WINDOW // STRIDE
"""Cells on the side of a window's coarsest map."""


class Level(NamedTuple):
    """A refinement module of SharpMask: side of its maps for one window, and channels."""

    side: int
    feature: int
    skip: int
    mask: int
    out: int


LEVELS = [
    Level(10, 1024, 32, 32, 16),
    Level(20, 512, 16, 16, 8),
    Level(40, 256, 8, 8, 4),
    Level(80, 64, 4, 4, 2),
]
"""SharpMask, section 3.2, with k = 32 and a ResNet-50 trunk."""

MASK_CHANNELS = (32, 16, 8, 4, 2)
SCALES = [2 ** (e / 2) for e in range(-5, 2)]


def pyramid(randn: Randn, photo: tuple[int, int], stage: int) -> Iterator[Tensor]:
    """The horizontal maps of a stage, one for each scale of a photo."""
    for scale in SCALES:
        rows, cols = (cells + CELLS - 1 for cells in grid_size(*scaled_size(*photo, scale), WINDOW))
        yield randn(1, LEVELS[stage][-1], rows << stage, cols << stage)


def best_windows(count: int, photo: tuple[int, int], device: torch.device) -> Windows:
    """The windows with the best of random scores. They lie on all scales, and none leaves its map."""
    generator = torch.Generator().manual_seed(0)
    grids = [grid_size(*scaled_size(*photo, scale), WINDOW) for scale in SCALES]
    scores = [torch.rand(1, 1, *grid, generator=generator).to(device) for grid in grids]
    return topk_windows(scores, count)

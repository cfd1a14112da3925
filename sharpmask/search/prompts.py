"""Which windows answer a prompt: a point or a box."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..geometry import CANONICAL, POSITIVE_DISTANCE, POSITIVE_OCTAVES
from .maps import Grid


def windows_at_point(grid: Grid, x: float, y: float, candidates: int) -> Tensor:
    """Positions in ``grid`` of the best-scoring ``candidates`` windows whose object may cover the pixel (x, y)."""
    around = torch.nonzero((grid.x - x).abs().maximum((grid.y - y).abs()) <= grid.reach).flatten()
    if len(around):
        order = around[torch.argsort(grid.score[around], descending=True, stable=True)]
    else:  # no window reaches a far corner: take the nearest ones
        order = torch.argsort(torch.hypot(grid.x - x, grid.y - y) / grid.reach, stable=True)
    return order[:candidates]


def window_in_box(grid: Grid, box: Sequence[float], window: int) -> Tensor:
    """Position in ``grid`` of the window of ``window`` pixels that fits the box (x, y, width, height) best.

    Off centre and off size are each measured in the unit within which training calls a window a positive.
    """
    x, y, width, height = box
    pixel = grid.reach / (CANONICAL * window / 2)  # of the scaled image, in image pixels
    centre = torch.hypot(grid.x - (x + width / 2), grid.y - (y + height / 2)) / (POSITIVE_DISTANCE * pixel)
    size = (torch.log2(2 * grid.reach) - np.log2(max(width, height, 1e-6))).abs() / POSITIVE_OCTAVES
    return (centre.square() + size.square()).argmin()


def check_numbers(name: str, values: Sequence[Sequence[float]], length: int) -> None:
    """Raise ``ValueError`` unless every entry of the argument ``name`` is ``length`` finite numbers."""
    for i, value in enumerate(values):
        if len(value) != length or not np.isfinite(value).all():
            raise ValueError(f"{name}[{i}] must be {length} finite numbers, got {value}")

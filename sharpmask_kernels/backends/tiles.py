"""Tiles of a map that a caller needs, as ``horizontal`` takes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def cells(needed: Tensor, tile: int, size: Sequence[int]) -> Tensor:
    """Tiles (B, rows, cols) as cells (B, 1, height, width) of maps of ``size``."""
    # Repeated tiles would take memory for cells beyond the map.
    rows, cols = (torch.arange(length, device=needed.device) // tile for length in size)
    return needed.index_select(1, rows).index_select(2, cols)[:, None]

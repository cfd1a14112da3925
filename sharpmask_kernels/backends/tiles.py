"""Tiles of a map that a caller needs, as ``horizontal`` takes them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def cells(needed: Tensor, tile: int, size: Sequence[int]) -> Tensor:
    """Tiles (B, rows, cols) as cells (B, 1, height, width) of maps of ``size``."""
    return needed.repeat_interleave(tile, 1).repeat_interleave(tile, 2)[:, None, : size[0], : size[1]]

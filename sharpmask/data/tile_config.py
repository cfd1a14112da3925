"""The settings of training tiles. Without PyTorch: a command line is checked before that is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from ..geometry import POSITIVE_DISTANCE, POSITIVE_OCTAVES


@dataclass(frozen=True)
class TileConfig:
    """How tiles are made. Distances are in pixels of the tile, sizes in octaves from the canonical size."""

    side: int = 256
    """Tile side in pixels."""
    tiles: int = 4
    """Tiles in a step."""
    positives: int = 6
    """Largest number of positive windows on a tile."""
    negatives: int = 24
    """Largest number of negative windows on a tile, half of them near an object."""
    positive_distance: float = POSITIVE_DISTANCE
    """Largest distance of a positive window's centre from its object's."""
    positive_octaves: float = POSITIVE_OCTAVES
    """Largest difference of its object's size from the canonical one."""
    negative_distance: float = 20.0
    """A window farther than this from an object's centre may be negative."""
    negative_octaves: float = 0.8
    """A nearer one may be, too, if the object's size differs by more than this from the canonical one."""
    pasted: int = 5
    """Largest number of objects pasted onto a tile; the smallest is 1, or 0 if this is 0."""
    shapes: float = 0.2
    """Share of the pasted objects that are textured shapes instead of objects cut from other photos."""
    anchored: float = 0.5
    """Share of tiles that show one of their photo's objects near the canonical size; the rest show any part."""
    free_scales: tuple[float, float] = (0.125, 2.0)
    """Range of scales of tiles that show any part of a photo."""
    blurred: float = 0.3
    """Share of tiles that are shrunk and enlarged again, as small objects are at inference."""
    max_enlargement: float = 3.0
    """Largest factor by which photos and pasted objects are enlarged."""

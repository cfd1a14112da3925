"""The settings of training tiles. Without PyTorch: a command line is checked before that is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeAlias

from ..errors import DataError
from ..geometry import POSITIVE_DISTANCE, POSITIVE_OCTAVES
from ..ranges import Range, Settings

MOST_PIXELS = 1 << 26
"""Of all tiles of a step."""
Scale: TypeAlias = Annotated[float, Range(1 / 64, 16)]


@dataclass(frozen=True)
class TileConfig(Settings):
    """How tiles are made. Distances are in pixels of the tile, sizes in octaves from the canonical size."""

    side: Annotated[int, Range(16, 4096, multiple=16)] = 256
    """Tile side in pixels."""
    tiles: Annotated[int, Range(1, 1024)] = 4
    """Tiles in a step."""
    positives: Annotated[int, Range(0, 10_000)] = 6
    """Largest number of positive windows on a tile."""
    negatives: Annotated[int, Range(0, 10_000)] = 24
    """Largest number of negative windows on a tile, half of them near an object."""
    positive_distance: Annotated[float, Range(0, 4096)] = POSITIVE_DISTANCE
    """Largest distance of a positive window's centre from its object's."""
    positive_octaves: Annotated[float, Range(0, 16)] = POSITIVE_OCTAVES
    """Largest difference of its object's size from the canonical one."""
    negative_distance: Annotated[float, Range(0, 4096)] = 20.0
    """A window farther than this from an object's centre may be negative."""
    negative_octaves: Annotated[float, Range(0, 16)] = 0.8
    """A nearer one may be, too, if the object's size differs by more than this from the canonical one."""
    pasted: Annotated[int, Range(0, 100)] = 5
    """Largest number of objects pasted onto a tile; the smallest is 1, or 0 if this is 0."""
    shapes: Annotated[float, Range(0, 1)] = 0.2
    """Share of the pasted objects that are textured shapes instead of objects cut from other photos."""
    anchored: Annotated[float, Range(0, 1)] = 0.5
    """Share of tiles that show one of their photo's objects near the canonical size; the rest show any part."""
    free_scales: tuple[Scale, Scale] = (0.125, 2.0)
    """Range of scales of tiles that show any part of a photo."""
    blurred: Annotated[float, Range(0, 1)] = 0.3
    """Share of tiles that are shrunk and enlarged again, as small objects are at inference."""
    max_enlargement: Annotated[float, Range(1, 16)] = 3.0
    """Largest factor by which photos and pasted objects are enlarged."""

    def __post_init__(self) -> None:
        super().__post_init__()
        pixels = self.tiles * self.side**2
        if pixels > MOST_PIXELS:
            raise DataError(
                f"tiles must have at most {MOST_PIXELS} pixels in a step, got {pixels}: "
                f"{self.tiles} of side {self.side}"
            )
        if self.free_scales[0] > self.free_scales[1]:
            raise DataError(f"free_scales must be the smallest and the largest scale, got {self.free_scales}")

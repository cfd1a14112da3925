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
    complete_tiles: Annotated[int, Range(0, 1024)] = 1
    """Least number of tiles in a step of several that show completely annotated photos, if there are both kinds."""
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
    part_negatives: Annotated[float, Range(0, 1)] = 0.0
    """Share of the negative windows that show a half to a third of an object, as far as there are any."""
    pasted: Annotated[int, Range(0, 100)] = 5
    """Largest number of objects pasted onto a tile; the smallest is 1, or 0 if this is 0."""
    shapes: Annotated[float, Range(0, 1)] = 0.2
    """Share of the pasted objects that are textured shapes instead of objects cut from other photos."""
    pasted_octaves: Annotated[float, Range(0, 4)] = 0.6
    """Largest difference of a pasted object's size from the canonical one."""
    occluding: Annotated[float, Range(0, 1)] = 0.0
    """Share of the pasted objects that lie on the edge of another object; the others lie anywhere."""
    behind: Annotated[float, Range(0, 1)] = 0.0
    """Share of the pasted objects that lie behind the other objects; the rest cover them."""
    most_hidden: Annotated[float, Range(0, 1)] = 1.0
    """An object of which pasted objects hide a larger share is no positive."""
    anchored: Annotated[float, Range(0, 1)] = 0.5
    """Share of tiles that show one of their photo's objects near the canonical size."""
    zoomed: Annotated[float, Range(0, 1)] = 0.0
    """Share of tiles that show the largest one at two to three times that size, for its parts; the rest, any place."""
    free_scales: tuple[Scale, Scale] = (0.125, 2.0)
    """Range of scales of tiles that show any part of a photo."""
    blurred: Annotated[float, Range(0, 1)] = 0.3
    """Share of tiles that are shrunk and enlarged again, as small objects are at inference."""
    max_enlargement: Annotated[float, Range(1, 16)] = 3.0
    """Largest factor by which photos and pasted objects are enlarged."""
    balance_sources: Annotated[float, Range(0, 1)] = 0.0
    """Within a data set, a source of n photos is drawn n ** (1 - this) as often: 0 for photos alike, 1 for sources."""
    balance_sizes: Annotated[float, Range(0, 1)] = 0.0
    """Share of tiles whose object is drawn among small, medium or large ones (as COCO has them), alike."""

    def __post_init__(self) -> None:
        super().__post_init__()
        pixels = self.tiles * self.side**2
        if pixels > MOST_PIXELS:
            raise DataError(
                f"tiles must have at most {MOST_PIXELS} pixels in a step, got {pixels}: "
                f"{self.tiles} of side {self.side}"
            )
        if self.anchored + self.zoomed > 1:
            raise DataError(
                f"anchored and zoomed must be shares of all tiles, at most 1 together, got {self.anchored} and "
                f"{self.zoomed}"
            )
        if self.free_scales[0] > self.free_scales[1]:
            raise DataError(f"free_scales must be the smallest and the largest scale, got {self.free_scales}")

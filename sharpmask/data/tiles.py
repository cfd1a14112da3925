"""Dense training tiles: pieces of photos with pasted objects, and many labelled windows on each.

A patch (:mod:`sharpmask.data.sampling`) costs one pass of the trunk and teaches one window. A tile costs one pass
and teaches many windows on its grid of 16 pixels: positives, which are centred on an object of the canonical size,
and negatives, which are far from every object. Windows in between are left out. Training thus sees whole maps, as
full-image inference does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sharpmask_kernels import Windows

from ..errors import DataError, counted
from ..geometry import CANONICAL, GREY_BYTE
from .augment import Array, Region, jitter_colours, resample, shrink_and_enlarge
from .coco import CocoFolder, Instance, Photo
from .labels import PART_OCTAVES, SMALLEST, Placed, Tile, label, visible
from .mixture import Mixture
from .packed import Packed
from .pasting import Paster, object_scale
from .pool import Pool
from .tile_config import TileConfig as TileConfig

TRIES = 100


class TileBatch(NamedTuple):
    """One training step. The P positives come first in ``windows``, and ``masks`` are theirs."""

    image: Tensor
    """uint8 (tiles, 3, side, side)"""
    windows: Windows
    masks: Tensor
    """uint8 (P, S, S) in {0, 1}"""


class TileBatches(Dataset[TileBatch]):
    """Whole batches of tiles, cut from an endless sequence of them.

    Each tile has a number, and depends only on the data, the settings, the seed and that number: batch k of B tiles
    holds those from k B to k B + B - 1. Processes that take different batches thus never draw the same tile.

    Partially annotated photos give no negatives but parts of their objects. If there are completely annotated ones
    too, ``complete_tiles`` of a batch show these, so that no batch raises all scores. A folder of background alone,
    beside others with objects, has its share of the tiles, which show any part of a photo at any scale.

    Raises ``DataError`` for settings that do not fit, if no photo of another folder has an object, or if a photo is
    damaged and the folder's ``skip_bad`` is not set.
    """

    def __init__(
        self,
        data: CocoFolder | Mixture,
        config: TileConfig,
        *,
        window: int,
        seed: int = 0,
    ) -> None:
        if config.side < window:
            raise DataError(f"side must be at least the window, {window}, got {config.side}")
        self.data, self.config, self.window = Mixture.of(data), config, window
        self.seed = seed
        parts = list(zip(self.data.folders, self.data.weights, self.data.backgrounds, strict=True))
        sets = [(_with_objects(folder), weight) for folder, weight, is_empty in parts if not is_empty]
        empty = [(folder.photos.where(_is_complete), weight) for folder, weight, is_empty in parts if is_empty]
        self.pool = Pool.of(sets, config.balance_sources)
        self._empty = Pool.of(empty, config.balance_sources) if empty else Pool([])
        self.photos = self.pool.photos
        self.paster = Paster(self.data, self.pool, config, window)
        whole = np.array(self.photos.values("complete"), bool)
        self._complete, self._partial = self.pool.only(whole), self.pool.only(~whole)
        background = sum(weight for _, weight in empty) / sum(self.data.weights)
        complete = (1 - background) * self.pool.share(whole)
        # A number below the first means a complete photo with objects, below the second background, else a partial one.
        self._bounds = complete, complete + background if self._partial.photos else 1.0

    def check_objects(self) -> None:
        """Raise ``DataError`` if the photos cannot teach all that the settings ask for.

        If none of their objects can become a positive, pasted shapes alone would teach; if no photo is completely
        annotated, nothing would be negative.
        """
        if self.config.positives and not any(map(self._can_be_positive, self._objects())):
            side = CANONICAL * self.window * 2**-self.config.positive_octaves
            longest = [max(i.box[2:]) for i in self._objects()]
            raise DataError(
                f"{self.data.name}: of {counted(len(longest), 'object')}, none can become a positive window: one "
                f"must reach {side:.0f} pixels on a side and {SMALLEST} in all when it is enlarged "
                f"{self._enlargement:g} times (max_enlargement); the longest side is {max(longest):.0f} pixels"
            )
        learns = self.config.negatives and not self.config.part_negatives
        if learns and not self._empty.photos and not self._complete.photos:
            raise DataError(
                f"{self.data.name}: must hold a completely annotated photo, since others give no negatives, got none; "
                "add such a data set (--dataset A B), or take parts of objects (--tiles.part-negatives 0.5), or train "
                "without (--tiles.negatives 0)"
            )

    def _objects(self) -> Iterator[Instance]:
        """All objects but crowds, one at a time: those of a large data set take a gigabyte together."""
        return (i for photo in self.photos for i in photo.instances if not i.crowd)

    @property
    def _enlargement(self) -> float:
        """The largest scale of a photo on a tile."""
        return max(self.config.max_enlargement, self.config.free_scales[1] if self.config.anchored < 1 else 0)

    def _can_be_positive(self, instance: Instance) -> bool:
        """Whether some scale brings an object to the size of a positive, with enough pixels."""
        longest = max(instance.box[2:])
        low, high = (CANONICAL * self.window * 2 ** (sign * self.config.positive_octaves) for sign in (-1, 1))
        scale = min(self._enlargement, high / max(longest, 1))
        return longest * scale >= low and instance.area * scale**2 >= SMALLEST

    def __getitem__(self, number: int) -> TileBatch:
        first = number * self.config.tiles
        streams = [np.random.default_rng([self.seed, tile]) for tile in range(first, first + self.config.tiles)]
        return collate([self._usable_tile(rng, pool) for rng, pool in zip(streams, self._pools(streams), strict=True)])

    def _pools(self, streams: Sequence[np.random.Generator]) -> list[Pool]:
        """The photos to draw from for each tile of a batch."""
        pools = self._complete, self._empty, self._partial
        if sum(bool(pool.photos) for pool in pools) < 2:
            return [self.pool] * len(streams)
        kinds = np.searchsorted(self._bounds, [rng.random() for rng in streams], side="right")
        partial = np.flatnonzero(kinds == 2)
        missing = min(self.config.complete_tiles, len(streams) - 1) - (len(streams) - len(partial))
        kinds[partial[: max(0, missing)]] = 0 if self._complete.photos else 1
        return [pools[kind] for kind in kinds]

    def _usable_tile(self, rng: np.random.Generator, pool: Pool) -> Tile:
        """A tile of readable photos. With the folder's ``skip_bad`` a damaged photo is noted and another one drawn."""
        for _ in range(TRIES):
            try:
                return self.tile(rng, pool)
            except DataError as error:
                if not self.data.skip_bad:
                    raise
                self.data.leave_out(str(error))
        raise DataError(f"{self.data.name}: no tile in {TRIES} tries, because too many photos are damaged")

    def tile(self, rng: np.random.Generator, pool: Pool) -> Tile:
        """One labelled tile of a photo in ``pool``."""
        config = self.config
        photo, instance = self._drawn(rng, pool)
        image, inside, placed = self._background(rng, photo, instance)
        for _ in range(int(rng.integers(min(1, config.pasted), config.pasted + 1))):
            self.paster.paste(rng, image, inside, placed)
        if rng.random() < config.blurred:
            image = shrink_and_enlarge(image, 2 ** rng.uniform(0.3, 1.6))
        return self._label(rng, image, [visible(p, config.most_hidden) for p in placed], photo.complete)

    def _drawn(self, rng: np.random.Generator, pool: Pool) -> tuple[Photo, Instance | None]:
        """A photo, and the object that its tile is about, if the photo has one."""
        if pool is self._empty:
            return pool.photo(rng), None
        sizes = self.config.balance_sizes
        return pool.an_object(rng, by_size=sizes > 0 and rng.random() < sizes)

    def _label(self, rng: np.random.Generator, image: Array, placed: list[Placed], complete: bool) -> Tile:
        return label(rng, image, placed, self.config, self.window, complete=complete)

    def _background(
        self, rng: np.random.Generator, photo: Photo, instance: Instance | None
    ) -> tuple[Array, Region, list[Placed]]:
        """A piece of a photo, the region of the tile that shows the photo, and the objects on it."""
        side = self.config.side
        scale, shown = self._view(rng, photo, instance)
        centre = None if shown is None else (shown.box[0] + shown.box[2] / 2, shown.box[1] + shown.box[3] / 2)
        x = self._offset(rng, photo.width * scale, centre and centre[0] * scale)
        y = self._offset(rng, photo.height * scale, centre and centre[1] * scale)

        def cut(layer: Array, fill: int) -> tuple[Array, Region]:
            return resample(layer, (x, y), scale, side, fill)

        image, inside = cut(self.data.load(photo), GREY_BYTE)
        image[inside] = jitter_colours(rng, image[inside])
        placed = [p for i in photo.instances if (p := self._place(i, (x, y), scale, cut)) is not None]
        if rng.random() < 0.5:
            image = np.ascontiguousarray(image[:, ::-1])
            inside = inside[0], slice(side - inside[1].stop, side - inside[1].start)
            placed = [p._replace(mask=p.mask[:, ::-1].copy(), x=side - p.x) for p in placed]
        return image, inside, placed

    def _view(self, rng: np.random.Generator, photo: Photo, instance: Instance | None) -> tuple[float, Instance | None]:
        """The photo's scale on a tile, and the object that must be on it, if any: ``instance`` or the largest."""
        config, complete = self.config, photo.complete
        if instance is None:
            return rng.uniform(*config.free_scales), None
        scale = object_scale(rng, max(instance.box[2:]), config.positive_octaves, config, self.window)
        kind = rng.random()
        # Beside its objects a partially annotated photo teaches nothing, so its tiles show an object, or its parts.
        if kind < config.anchored or not (complete or config.zoomed or config.part_negatives):
            return scale, instance
        if kind < config.anchored + config.zoomed or not complete:
            objects = [each for each in photo.instances if not each.crowd] or [instance]
            largest = max(objects, key=lambda each: max(each.box[2:]))
            larger = CANONICAL * self.window * 2 ** rng.uniform(*PART_OCTAVES)
            return min(config.max_enlargement, larger / max(*largest.box[2:], 1)), largest
        # Uniform in scale, not in octaves: a pyramid has most of its windows at fine scales, and most are empty.
        return rng.uniform(*config.free_scales), None

    def _offset(self, rng: np.random.Generator, length: float, centre: float | None) -> float:
        """Start of the tile on an axis of the scaled photo. Up to half a window may lie outside, as at inference."""
        side, margin = self.config.side, self.window / 2
        low, high = sorted((-margin, length + margin - side))
        if centre is not None:
            low, high = max(low, centre - side + margin), min(high, centre - margin)
            low, high = (low, high) if low <= high else (centre - side / 2,) * 2
        return rng.uniform(low, high)

    def _place(
        self,
        instance: Instance,
        origin: tuple[float, float],
        scale: float,
        cut: Callable[[Array, int], tuple[Array, Region]],
    ) -> Placed | None:
        """An annotated object of the photo on the tile; None if its box is wholly outside."""
        x, y, w, h = (value * scale for value in instance.box)
        x, y = x - origin[0], y - origin[1]
        side = self.config.side
        if x >= side or y >= side or x + w <= 0 or y + h <= 0:
            return None
        mask = cut(instance.mask().astype(np.uint8) * 255, 0)[0] > 127
        whole = x >= 0 and y >= 0 and x + w <= side and y + h <= side
        usable = whole and not instance.crowd
        return Placed(mask, x + w / 2, y + h / 2, max(w, h), usable, instance.crowd, int(mask.sum()))


def collate(tiles: list[Tile]) -> TileBatch:
    """Join tiles to a batch. The positives of all tiles come before all negatives."""
    count = [len(t.masks) for t in tiles]
    cells = np.concatenate([t.cells[:n] for t, n in zip(tiles, count, strict=True)]
                           + [t.cells[n:] for t, n in zip(tiles, count, strict=True)])  # fmt: skip
    rest = [len(t.cells) - n for t, n in zip(tiles, count, strict=True)]
    owner = np.concatenate([np.repeat(np.arange(len(tiles)), count), np.repeat(np.arange(len(tiles)), rest)])
    row, col = torch.from_numpy(np.ascontiguousarray(cells.T))
    windows = Windows(torch.zeros(len(cells)), torch.from_numpy(owner), torch.zeros_like(row), row, col)
    image = torch.from_numpy(np.stack([t.image for t in tiles])).permute(0, 3, 1, 2)
    return TileBatch(image, windows, torch.from_numpy(np.concatenate([t.masks for t in tiles])))


def _is_complete(photo: Photo) -> bool:
    return photo.complete


def _with_objects(folder: CocoFolder) -> Packed[Photo]:
    """The photos of a folder that have an object. Raises ``DataError`` if there is none, or only crowds."""
    photos = folder.photos.where(lambda photo: bool(photo.instances))
    if not any(not i.crowd for photo in photos for i in photo.instances):
        raise DataError(f"{folder.annotation_file}: no photo with an object to train on (crowds do not count)")
    return photos

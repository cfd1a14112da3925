"""Dense training tiles: pieces of photos with pasted objects, and many labelled windows on each.

A patch (:mod:`sharpmask.data.sampling`) costs one pass of the trunk and teaches one window. A tile costs one pass
and teaches many windows on its grid of 16 pixels: positives, which are centred on an object of the canonical size,
and negatives, which are far from every object. Windows in between are left out. Training thus sees whole maps, as
full-image inference does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from sharpmask_kernels import Windows
from sharpmask_kernels.windows import STRIDE

from ..errors import DataError
from ..geometry import CANONICAL, GREY_BYTE
from .coco import CocoFolder, Instance, Photo
from .shapes import random_shape
from .textures import random_texture
from .tile_config import TileConfig as TileConfig

Array = npt.NDArray[np.uint8]
Region = tuple[slice, slice]

TRIES = 100
SMALLEST = 64
"""Visible pixels on a tile that an object needs to be a positive."""


class Placed(NamedTuple):
    """An object on a tile: its visible pixels, and the centre and longest side that decide the labels, in pixels."""

    mask: npt.NDArray[np.bool_]
    """bool (side, side)"""
    x: float
    y: float
    longest: float
    usable: bool
    """Whether it may have positive windows: it is no crowd, visible enough, and wholly on the tile."""


class TileBatch(NamedTuple):
    """One training step. The P positives come first in ``windows``, and ``masks`` are theirs."""

    image: Tensor
    """uint8 (tiles, 3, side, side)"""
    windows: Windows
    masks: Tensor
    """uint8 (P, S, S) in {0, 1}"""


class TileBatches(Dataset[TileBatch]):
    """Whole batches of tiles. Item ``step`` depends only on the folder, the settings and (seed, step, rank).

    Raises ``DataError`` for settings that do not fit, if no photo has an object, or if a photo is
    damaged and the folder's ``skip_bad`` is not set.
    """

    def __init__(
        self,
        folder: CocoFolder,
        config: TileConfig,
        *,
        window: int,
        seed: int = 0,
        rank: int = 0,
        length: int = 2**31,
    ) -> None:
        if config.side < window:
            raise DataError(f"side must be at least the window, {window}, got {config.side}")
        # A tile takes negatives from its photo.
        self.photos = [p for p in folder.photos if p.instances and p.background]
        if not any(not i.crowd for p in self.photos for i in p.instances):
            raise DataError(f"{folder.annotation_file}: no photo with an object to train on (crowds do not count)")
        self.folder, self.config, self.window, self.length = folder, config, window, length
        self.key = (seed, rank)

    def check_objects(self) -> None:
        """Raise ``DataError`` if no object of the photos can become a positive: pasted shapes alone would teach."""
        objects = [i for photo in self.photos for i in photo.instances if not i.crowd]
        if self.config.positives and not any(map(self._can_be_positive, objects)):
            side = CANONICAL * self.window * 2**-self.config.positive_octaves
            raise DataError(
                f"{self.folder.annotation_file}: none of the {len(objects)} objects can become a positive window: one "
                f"must reach {side:.0f} pixels on a side and {SMALLEST} in all when it is enlarged "
                f"{self._enlargement:g} times (max_enlargement); the longest side is "
                f"{max(max(i.box[2:]) for i in objects):.0f} pixels"
            )

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

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, step: int) -> TileBatch:
        rng = np.random.default_rng([*self.key, step])
        return collate([self._usable_tile(rng) for _ in range(self.config.tiles)])

    def _usable_tile(self, rng: np.random.Generator) -> Tile:
        """A tile of readable photos. With the folder's ``skip_bad`` a damaged photo is noted and another one drawn."""
        for _ in range(TRIES):
            try:
                return self.tile(rng)
            except DataError as error:
                if not self.folder.skip_bad:
                    raise
                if str(error) not in self.folder.skipped:
                    self.folder.skipped.append(str(error))
        raise DataError(f"{self.folder.annotation_file}: no tile in {TRIES} tries, because too many photos are damaged")

    def tile(self, rng: np.random.Generator) -> Tile:
        """One labelled tile."""
        image, inside, placed = self._background(rng)
        for _ in range(int(rng.integers(min(1, self.config.pasted), self.config.pasted + 1))):
            self._paste(rng, image, inside, placed)
        if rng.random() < self.config.blurred:
            image = _shrink_and_enlarge(image, 2 ** rng.uniform(0.3, 1.6))
        return self._label(rng, image, [_visible(p) for p in placed])

    def _background(self, rng: np.random.Generator) -> tuple[Array, Region, list[Placed]]:
        """A piece of a photo, the region of the tile that shows the photo, and the objects on it."""
        config, side = self.config, self.config.side
        photo = self.photos[rng.integers(len(self.photos))]
        left, top, w, h = photo.instances[rng.integers(len(photo.instances))].box
        scale = self._object_scale(rng, max(w, h), config.positive_octaves)
        anchored = rng.random() < config.anchored
        if not anchored:
            # Uniform in scale, not in octaves: a pyramid has most of its windows at fine scales, and most are empty.
            scale = rng.uniform(*config.free_scales)
        x = self._offset(rng, photo.width * scale, (left + w / 2) * scale if anchored else None)
        y = self._offset(rng, photo.height * scale, (top + h / 2) * scale if anchored else None)

        def cut(layer: Array, fill: int) -> tuple[Array, Region]:
            return resample(layer, (x, y), scale, side, fill)

        image, inside = cut(self.folder.load(photo), GREY_BYTE)
        image[inside] = jitter_colours(rng, image[inside])
        placed = [p for i in photo.instances if (p := self._place(i, (x, y), scale, cut)) is not None]
        if rng.random() < 0.5:
            image = np.ascontiguousarray(image[:, ::-1])
            inside = inside[0], slice(side - inside[1].stop, side - inside[1].start)
            placed = [p._replace(mask=p.mask[:, ::-1].copy(), x=side - p.x) for p in placed]
        return image, inside, placed

    def _object_scale(self, rng: np.random.Generator, longest: float, octaves: float) -> float:
        """A scale that brings an object with a ``longest`` side to the canonical size, up to so many ``octaves``."""
        canonical = CANONICAL * self.window
        return min(self.config.max_enlargement, canonical / max(longest, 1) * 2 ** rng.uniform(-octaves, octaves))

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
        return Placed(mask, x + w / 2, y + h / 2, max(w, h), whole and not instance.crowd)

    def _paste(self, rng: np.random.Generator, image: Array, inside: Region, placed: list[Placed]) -> None:
        """Paste one object onto the tile, in place, with its centre on the photo."""
        side = self.config.side
        pixels, alpha = self._shape(rng) if rng.random() < self.config.shapes else self._cutout(rng)
        longest = max(alpha.shape)
        scale = self._object_scale(rng, longest, 0.6)
        angle = rng.normal(0, 10)
        size = max(2, round(alpha.shape[1] * scale)), max(2, round(alpha.shape[0] * scale))
        flip = slice(None, None, -1 if rng.random() < 0.5 else 1)
        layers = np.dstack([jitter_colours(rng, pixels), alpha])[:, flip]
        turned = Image.fromarray(layers).resize(size, Image.Resampling.BILINEAR)
        layers = np.asarray(turned.rotate(angle, Image.Resampling.BILINEAR, expand=True))
        height, width = layers.shape[:2]
        # Roughly the range of the centres of windows on the grid.
        margin = self.window / 2 - STRIDE
        low, high = (np.clip([getattr(i, end) for i in inside], margin, side - margin) for end in ("start", "stop"))
        centre = rng.uniform(low, high)
        top, left = int(centre[0] - height / 2), int(centre[1] - width / 2)
        y, x = max(0, top), max(0, left)
        layers = layers[y - top : side - top, x - left : side - left]
        target = image[y : y + layers.shape[0], x : x + layers.shape[1]]
        opacity = layers[..., 3:].astype(np.float32) / 255
        target[:] = target + (layers[..., :3] - target.astype(np.float32)) * opacity + 0.5
        mask = np.zeros((side, side), dtype=bool)
        mask[y : y + layers.shape[0], x : x + layers.shape[1]] = layers[..., 3] > 127
        for i, other in enumerate(placed):
            placed[i] = other._replace(mask=other.mask & ~mask)
        whole = top >= 0 and left >= 0 and top + height <= side and left + width <= side
        placed.append(Placed(mask, left + width / 2, top + height / 2, max(height, width), whole))

    def _cutout(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """An object cut out of some photo: the pixels of its box, (h, w, 3), and opacity (h, w)."""
        for _ in range(20):
            photo = self.photos[rng.integers(len(self.photos))]
            instance = photo.instances[rng.integers(len(photo.instances))]
            if not instance.crowd and _complete(photo, instance):
                mask = instance.mask()
                rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                if len(rows) >= 24 or len(cols) >= 24:
                    box = slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1)
                    return self.folder.load(photo)[box], mask[box].astype(np.uint8) * 255
        return self._shape(rng)

    def _shape(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """A generated shape with a texture, often a piece of some photo: pixels (h, w, 3) and opacity (h, w)."""
        shape = random_shape(rng, int(rng.integers(48, 129)))
        photo = self.photos[rng.integers(len(self.photos))]
        texture = random_texture(rng, shape.shape[0], shape.shape[1], [Image.fromarray(self.folder.load(photo))])
        return np.clip(texture, 0, 255).astype(np.uint8), shape.astype(np.uint8) * 255

    def _label(self, rng: np.random.Generator, image: Array, placed: list[Placed]) -> Tile:
        """Choose positive and negative windows of the tile's grid."""
        config = self.config
        cells = (config.side - self.window) // STRIDE + 1
        row, col = (grid.ravel() for grid in np.indices((cells, cells)))
        centre = self.window / 2
        objects = np.array([(p.y, p.x, p.longest) for p in placed]).reshape(-1, 3)
        usable = np.array([p.usable for p in placed], dtype=bool)
        distance = np.hypot(
            row[:, None] * STRIDE + centre - objects[:, 0], col[:, None] * STRIDE + centre - objects[:, 1]
        )
        octaves = np.abs(np.log2(np.maximum(objects[:, 2], 1) / (CANONICAL * self.window)))[None]
        good = (distance <= config.positive_distance) & (octaves <= config.positive_octaves) & usable
        far = ((distance > config.negative_distance) | (octaves > config.negative_octaves)).all(1)
        near = far & ((distance < 3 * config.negative_distance) & (octaves < 2)).any(1)
        # A window that fits several objects belongs to the one that it fits best.
        misfit = distance / config.positive_distance + octaves / config.positive_octaves
        owner = np.where(good, misfit, np.inf).argmin(1) if len(placed) else np.zeros(len(row), dtype=int)
        positives = _choose(rng, np.flatnonzero(good.any(1)), config.positives)
        hard = _choose(rng, np.flatnonzero(near), config.negatives // 2)
        rest = np.setdiff1d(np.flatnonzero(far), hard)
        negatives = np.concatenate([hard, _choose(rng, rest, config.negatives - len(hard))])
        masks = np.zeros((len(positives), self.window, self.window), dtype=np.uint8)
        for mask, i in zip(masks, positives, strict=True):
            y, x = row[i] * STRIDE, col[i] * STRIDE
            mask[:] = placed[owner[i]].mask[y : y + self.window, x : x + self.window]
        chosen = np.concatenate([positives, negatives])
        return Tile(image, np.stack([row[chosen], col[chosen]], axis=1), masks)


class Tile(NamedTuple):
    """One tile: image (side, side, 3), (row, col) of its windows, positives first, and the positives' masks."""

    image: Array
    cells: npt.NDArray[np.int64]
    masks: Array


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


def resample(layer: Array, origin: tuple[float, float], scale: float, side: int, fill: int) -> tuple[Array, Region]:
    """The square of ``side`` pixels at ``origin`` (x, y) of ``layer`` after scaling by ``scale``.

    Pixels outside the layer are ``fill``. Returns the square, and the rows and columns that are inside.
    """
    out = np.full((side, side, *layer.shape[2:]), fill, dtype=np.uint8)
    spans = []
    for start, length in zip(origin, (layer.shape[1], layer.shape[0]), strict=True):
        first, last = max(0, round(-start)), min(side, round(length * scale - start))
        low = max(0.0, (first + start) / scale)
        spans.append((first, last, low, min(float(length), (last + start) / scale)))
    (x0, x1, left, right), (y0, y1, top, bottom) = spans
    if x1 > x0 and y1 > y0 and right > left and bottom > top:
        piece = Image.fromarray(layer).resize(
            (x1 - x0, y1 - y0), Image.Resampling.BILINEAR, (left, top, right, bottom), reducing_gap=2.0
        )
        out[y0:y1, x0:x1] = np.asarray(piece)
    return out, (slice(y0, max(y0, y1)), slice(x0, max(x0, x1)))


def jitter_colours(rng: np.random.Generator, image: Array) -> Array:
    """Change brightness, contrast, white balance and saturation at random; one image in 20 becomes greyscale."""
    saturation = 0.0 if rng.random() < 0.05 else 2 ** rng.uniform(-0.7, 0.5)
    gain = 2 ** (rng.uniform(-0.45, 0.45) + rng.uniform(-0.15, 0.15, 3))
    offset = rng.uniform(-20, 20)
    # Saturation, gain and white balance are linear in the colours, so one 3 x 3 matrix does them all.
    weights = np.array([0.299, 0.587, 0.114])
    matrix = (saturation * np.eye(3) + (1 - saturation) * weights[:, None]) * gain
    return (
        np.clip(image.reshape(-1, 3) @ matrix.astype(np.float32) + np.float32(offset), 0, 255)
        .astype(np.uint8)
        .reshape(image.shape)
    )


def _shrink_and_enlarge(image: Array, factor: float) -> Array:
    """The image shrunk by ``factor`` and enlarged again, which blurs it."""
    side = image.shape[0]
    small = Image.fromarray(image).resize((round(side / factor),) * 2, Image.Resampling.BILINEAR)
    return np.array(small.resize((side, side), Image.Resampling.BILINEAR))


def _complete(photo: Photo, instance: Instance) -> bool:
    """Whether an object lies wholly inside its photo, away from the border that may cut it."""
    x, y, w, h = instance.box
    return x > 2 and y > 2 and x + w < photo.width - 2 and y + h < photo.height - 2


def _visible(placed: Placed) -> Placed:
    """The object with the centre and size of its visible pixels; not usable if fewer than ``SMALLEST`` are visible."""
    rows, cols = np.flatnonzero(placed.mask.any(1)), np.flatnonzero(placed.mask.any(0))
    if not placed.usable or len(rows) == 0:
        return placed._replace(usable=False)
    height, width = rows[-1] + 1 - rows[0], cols[-1] + 1 - cols[0]
    y, x = rows[0] + height / 2, cols[0] + width / 2
    return placed._replace(x=x, y=y, longest=max(height, width), usable=placed.mask.sum() >= SMALLEST)


def _choose(rng: np.random.Generator, items: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """At most ``count`` of the items, at random."""
    return rng.permutation(items)[:count]

"""Objects pasted onto a tile: cut out of other photos, or made-up shapes."""

from __future__ import annotations

import numpy as np
from PIL import Image

from sharpmask_kernels.windows import STRIDE

from ..geometry import CANONICAL
from .augment import Array, Region, jitter_colours
from .coco import Photo
from .labels import Placed
from .mixture import Mixture
from .objects import Instance
from .pool import Pool
from .shapes import random_shape
from .textures import random_texture
from .tile_config import TileConfig

_LEAST_SIDE = 24
"""Pixels that an object must have on its longer side, or it is too blurred when it is enlarged."""


class Paster:
    """Pastes objects of the photos in ``pool`` onto tiles."""

    def __init__(self, data: Mixture, pool: Pool, config: TileConfig, window: int) -> None:
        self.data, self.pool, self.config, self.window = data, pool, config, window

    def paste(self, rng: np.random.Generator, image: Array, inside: Region, placed: list[Placed]) -> None:
        """Paste one object onto the tile, in place, with its centre on the photo. It is added to ``placed``."""
        side, config = self.config.side, self.config
        pixels, alpha = self.shape(rng) if rng.random() < config.shapes else self.cutout(rng)
        layers = self._turned(rng, pixels, alpha)
        height, width = layers.shape[:2]
        centre = self._centre(rng, inside, placed, max(height, width))
        top, left = int(centre[0] - height / 2), int(centre[1] - width / 2)
        y, x = max(0, top), max(0, left)
        layers = layers[y - top : side - top, x - left : side - left]
        place = slice(y, y + layers.shape[0]), slice(x, x + layers.shape[1])
        opacity = layers[..., 3:].astype(np.float32) / 255
        mask = np.zeros((side, side), dtype=bool)
        mask[place] = layers[..., 3] > 127
        pixels_before = int(mask.sum())
        if config.behind and rng.random() < config.behind:
            for other in placed:
                mask &= ~other.mask
                opacity[other.mask[place]] = 0
        else:
            placed[:] = [other._replace(mask=other.mask & ~mask) for other in placed]
        target = image[place]
        target[:] = target + (layers[..., :3] - target.astype(np.float32)) * opacity + 0.5
        whole = top >= 0 and left >= 0 and top + height <= side and left + width <= side
        longest = max(height, width)
        placed.append(Placed(mask, left + width / 2, top + height / 2, longest, whole, False, pixels_before))

    def _turned(self, rng: np.random.Generator, pixels: Array, alpha: Array) -> Array:
        """The object in other colours, near the canonical size, perhaps mirrored, and turned: (h, w, 4)."""
        octaves = self.config.pasted_octaves
        scale = object_scale(rng, max(alpha.shape), octaves, self.config, self.window)
        angle = rng.normal(0, 10)
        size = max(2, round(alpha.shape[1] * scale)), max(2, round(alpha.shape[0] * scale))
        flip = slice(None, None, -1 if rng.random() < 0.5 else 1)
        layers = np.dstack([jitter_colours(rng, pixels), alpha])[:, flip]
        turned = Image.fromarray(layers).resize(size, Image.Resampling.BILINEAR)
        return np.asarray(turned.rotate(angle, Image.Resampling.BILINEAR, expand=True))

    def _centre(self, rng: np.random.Generator, inside: Region, placed: list[Placed], longest: int) -> Array:
        """Where an object of a ``longest`` side comes to lie: (y, x) of its centre."""
        side = self.config.side
        # Roughly the range of the centres of windows on the grid.
        margin = self.window / 2 - STRIDE
        low, high = (np.clip([getattr(i, end) for i in inside], margin, side - margin) for end in ("start", "stop"))
        usable = [p for p in placed if p.usable]
        if usable and self.config.occluding and rng.random() < self.config.occluding:
            other = usable[int(rng.integers(len(usable)))]
            angle = rng.uniform(0, 2 * np.pi)
            distance = rng.uniform(0.25, 0.75) * (longest + other.longest) / 2
            return np.clip([other.y + distance * np.sin(angle), other.x + distance * np.cos(angle)], low, high)
        return rng.uniform(low, high)

    def cutout(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """An object cut out of some photo: the pixels of its box, (h, w, 3), and opacity (h, w)."""
        for _ in range(20):
            photo, instance = self.pool.an_object(rng, by_size=False)
            if not instance.crowd and _is_whole(photo, instance):
                mask = instance.mask()
                rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                if len(rows) >= _LEAST_SIDE or len(cols) >= _LEAST_SIDE:
                    box = slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1)
                    return self.data.load(photo)[box], mask[box].astype(np.uint8) * 255
        return self.shape(rng)

    def shape(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """A generated shape with a texture, often a piece of some photo: pixels (h, w, 3) and opacity (h, w)."""
        shape = random_shape(rng, int(rng.integers(48, 129)))
        photo = self.data.load(self.pool.photo(rng))
        texture = random_texture(rng, shape.shape[0], shape.shape[1], [Image.fromarray(photo)])
        return np.clip(texture, 0, 255).astype(np.uint8), shape.astype(np.uint8) * 255


def object_scale(rng: np.random.Generator, longest: float, octaves: float, config: TileConfig, window: int) -> float:
    """A scale that brings an object with a ``longest`` side to the canonical size, up to so many ``octaves``."""
    return min(config.max_enlargement, CANONICAL * window / max(longest, 1) * 2 ** rng.uniform(-octaves, octaves))


def _is_whole(photo: Photo, instance: Instance) -> bool:
    """Whether an object lies wholly inside its photo, away from the border that may cut it."""
    x, y, w, h = instance.box
    return x > 2 and y > 2 and x + w < photo.width - 2 and y + h < photo.height - 2

"""The labelled windows of a tile: which of its grid are positive, and which negative."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from sharpmask_kernels.windows import STRIDE

from ..geometry import CANONICAL
from .tile_config import TileConfig

Cells = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

SMALLEST: Final = 64
"""Visible pixels on a tile that an object needs to be a positive."""
PART_OCTAVES: Final = (1.0, 1.6)
"""How much larger than the canonical size an object is of which a window shows a part: it is a half to a third.

Smaller parts may be objects that nobody has annotated, such as a person's tie.
"""
_FILLED: Final = 0.7
"""Least share of the middle of such a window that the object covers, where others may lack an annotation."""
_MET: Final = 0.3
"""The same where all objects are annotated: enough to show a part, such as a head."""


class Placed(NamedTuple):
    """An object on a tile: its visible pixels, and the centre and longest side that decide the labels, in pixels."""

    mask: npt.NDArray[np.bool_]
    """bool (side, side)"""
    x: float
    y: float
    longest: float
    usable: bool
    """Whether it may have positive windows: it is no crowd, visible enough, and wholly on the tile."""
    crowd: bool
    pixels: int
    """On the tile, before anything covered it."""


class Tile(NamedTuple):
    """One tile: image (side, side, 3), (row, col) of its windows, positives first, and the positives' masks."""

    image: npt.NDArray[np.uint8]
    cells: Cells
    masks: npt.NDArray[np.uint8]


def visible(placed: Placed, most_hidden: float) -> Placed:
    """The object with the centre and size of its visible pixels.

    It is not usable if fewer than ``SMALLEST`` are visible, or more than the share ``most_hidden`` is hidden.
    """
    rows, cols = np.flatnonzero(placed.mask.any(1)), np.flatnonzero(placed.mask.any(0))
    if not placed.usable or len(rows) == 0:
        return placed._replace(usable=False)
    height, width = rows[-1] + 1 - rows[0], cols[-1] + 1 - cols[0]
    y, x = rows[0] + height / 2, cols[0] + width / 2
    seen = placed.mask.sum()
    usable = bool(seen >= max(SMALLEST, (1 - most_hidden) * placed.pixels))
    return placed._replace(x=x, y=y, longest=max(height, width), usable=usable)


def label(
    rng: np.random.Generator,
    image: npt.NDArray[np.uint8],
    placed: list[Placed],
    config: TileConfig,
    window: int,
    *,
    complete: bool,
) -> Tile:
    """Choose positive and negative windows of the tile's grid.

    Unless ``complete``, the tile may show objects that nobody has annotated. Then negatives are parts of annotated
    ones alone.
    """
    cells = (config.side - window) // STRIDE + 1
    row, col = (grid.ravel() for grid in np.indices((cells, cells)))
    distance, octaves = _off(placed, row, col, window)
    usable = np.array([p.usable for p in placed], dtype=bool)
    good = (distance <= config.positive_distance) & (octaves <= config.positive_octaves) & usable
    far = ((distance > config.negative_distance) | (octaves > config.negative_octaves)).all(1)
    near = far & ((distance < 3 * config.negative_distance) & (octaves < 2)).any(1)
    parts = np.zeros_like(far)
    if config.part_negatives:
        parts = far & _shows_part(placed, row, col, window, _MET if complete else _FILLED)
    positives = _choose(rng, np.flatnonzero(good.any(1)), config.positives)
    negatives = _choose(rng, np.flatnonzero(parts), round(config.part_negatives * config.negatives))
    if complete:
        negatives = _filled_up(rng, negatives, np.flatnonzero(near), np.flatnonzero(far), config.negatives)
    # A window that fits several objects belongs to the one that it fits best.
    misfit = distance / config.positive_distance + octaves / config.positive_octaves
    owner = np.where(good, misfit, np.inf).argmin(1) if len(placed) else np.zeros(len(row), dtype=int)
    masks = np.zeros((len(positives), window, window), dtype=np.uint8)
    for mask, i in zip(masks, positives, strict=True):
        y, x = row[i] * STRIDE, col[i] * STRIDE
        mask[:] = placed[owner[i]].mask[y : y + window, x : x + window]
    chosen = np.concatenate([positives, negatives])
    return Tile(image, np.stack([row[chosen], col[chosen]], axis=1), masks)


def _off(placed: list[Placed], row: Cells, col: Cells, window: int) -> tuple[Floats, Floats]:
    """How far N windows are from fitting P objects: their centres in pixels (N, P), their sizes in octaves (1, P)."""
    objects = np.array([(p.y, p.x, p.longest) for p in placed]).reshape(-1, 3)
    centre = window / 2
    distance = np.hypot(row[:, None] * STRIDE + centre - objects[:, 0], col[:, None] * STRIDE + centre - objects[:, 1])
    octaves = np.abs(np.log2(np.maximum(objects[:, 2], 1) / (CANONICAL * window)))[None]
    return distance, octaves


def _filled_up(rng: np.random.Generator, chosen: Cells, near: Cells, far: Cells, count: int) -> Cells:
    """``count`` negatives: those ``chosen``, and of what is left a half near objects, the rest of all that are far."""
    left = count - len(chosen)
    hard = _choose(rng, np.setdiff1d(near, chosen), left // 2)
    chosen = np.concatenate([chosen, hard])
    rest = np.setdiff1d(far, chosen)
    return np.concatenate([chosen, _choose(rng, rest, left - len(hard))])


def _shows_part(placed: list[Placed], row: Cells, col: Cells, window: int, share: float) -> npt.NDArray[np.bool_]:
    """Which windows show a part of a larger object where one that fits them would be, on that ``share`` or more."""
    middle = round(CANONICAL * window)
    margin = (window - middle) // 2
    y, x = row * STRIDE + margin, col * STRIDE + margin
    found = np.zeros(len(row), dtype=bool)
    for p in placed:
        if not p.crowd and PART_OCTAVES[0] <= np.log2(max(p.longest, 1) / (CANONICAL * window)) <= PART_OCTAVES[1]:
            total = np.pad(p.mask.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
            low, right = y + middle, x + middle
            pixels = total[low, right] - total[y, right] - total[low, x] + total[y, x]
            found |= pixels >= share * middle**2
    return found


def _choose(rng: np.random.Generator, items: Cells, count: int) -> Cells:
    """At most ``count`` of the items, at random."""
    return rng.permutation(items)[:count]

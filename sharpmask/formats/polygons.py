"""Masks as polygons that draw the same pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ..packages import needed

Mask: TypeAlias = npt.NDArray[np.bool_]
Ring: TypeAlias = npt.NDArray[np.int64]
"""A closed polygon: (n, 2), x and y in pixels, n at least 3."""


def rings(mask: Mask, what: str) -> list[Ring]:
    """Polygons that draw a mask (h, w), one for each part of it, for the format ``what``.

    They run through the outermost pixels, numbered from 0, which belong to the mask: labelme, OpenCV, Pillow and
    supervision draw a polygon with its border. A hole is joined to the border by a line that runs there and back.
    """
    rows, cols = np.nonzero(mask)
    if not len(rows):
        return []
    left, top = cols.min(), rows.min()
    part = mask[top : rows.max() + 1, left : cols.max() + 1]
    trace = needed("supervision.dataset.utils", what).approximate_mask_with_polygons
    try:
        found = trace(part, approximation_percentage=0, bridge_holes=True)
    except ValueError:  # no line to a hole stays on the object
        found = []
    shown = drawn(found, part.shape, what)
    if (shown & ~part).any():
        found, shown = [], np.zeros_like(part)
    # Points and straight lines have no polygon of three corners.
    return [np.add(ring, (left, top), dtype=np.int64) for ring in (*found, *runs(part & ~shown))]


def drawn(polygons: Sequence[Ring], size: tuple[int, ...], what: str) -> Mask:
    """The pixels (h, w) that polygons draw."""
    draw = needed("supervision", what).polygon_to_mask
    mask = np.zeros(size, dtype=bool)
    for polygon in polygons:
        mask |= draw(polygon, resolution_wh=(size[1], size[0])) > 0
    return mask


def runs(mask: Mask) -> list[Ring]:
    """The runs of pixels in a mask's rows, as polygons without width."""
    steps = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    ends = zip(np.argwhere(steps == 1), np.argwhere(steps == -1), strict=True)
    return [np.array([(first, row), (last - 1, row), (first, row)]) for (row, first), (_, last) in ends]


def joined(parts: Sequence[Ring]) -> Ring:
    """Polygons as one, joined between their nearest points by lines that run there and back."""
    whole, *others = parts
    for ring in others:
        distance = ((whole[:, None] - ring) ** 2).sum(2)
        here, there = np.unravel_index(distance.argmin(), distance.shape)
        whole = np.concatenate([whole[: here + 1], ring[there:], ring[: there + 1], whole[here:]])
    return whole

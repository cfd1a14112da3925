"""Which windows answer a prompt: a point or a box."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from ..geometry import CANONICAL, POSITIVE_DISTANCE, POSITIVE_OCTAVES
from ..ranges import shown
from .maps import Grid
from .proposals import Rle


def windows_at_point(grid: Grid, x: float, y: float, candidates: int) -> Tensor:
    """Positions in ``grid`` of the best-scoring ``candidates`` windows whose object may cover the pixel (x, y)."""
    around = torch.nonzero((grid.x - x).abs().maximum((grid.y - y).abs()) <= grid.reach).flatten()
    if len(around):
        order = around[torch.argsort(grid.score[around], descending=True, stable=True)]
    else:  # no window reaches a far corner: take the nearest ones
        order = torch.argsort(torch.hypot(grid.x - x, grid.y - y) / grid.reach, stable=True)
    return order[:candidates]


def window_in_box(grid: Grid, box: Sequence[float], window: int) -> Tensor:
    """Position in ``grid`` of the window of ``window`` pixels that fits the box (x, y, width, height) best.

    Off centre and off size are each measured in the unit within which training calls a window a positive.
    """
    x, y, width, height = box
    pixel = grid.reach / (CANONICAL * window / 2)  # of the scaled image, in image pixels
    centre = torch.hypot(grid.x - (x + width / 2), grid.y - (y + height / 2)) / (POSITIVE_DISTANCE * pixel)
    size = (torch.log2(2 * grid.reach) - np.log2(max(width, height, 1e-6))).abs() / POSITIVE_OCTAVES
    return (centre.square() + size.square()).argmin()


def as_points(points: Any, size: tuple[int, int]) -> list[tuple[float, ...]]:
    """Points (x, y) on a photo of ``size`` (h, w). Raises ``ValueError`` that names the first that is none."""
    height, width = size
    rows = _rows("points", points, ("x", "y"))
    for i, (x, y) in enumerate(rows):
        if not (0 <= x <= width and 0 <= y <= height):
            raise ValueError(f"points[{i}] must lie on the photo of {width}x{height} pixels, got {(x, y)}")
    return rows


def as_boxes(boxes: Any, size: tuple[int, int]) -> list[tuple[float, ...]]:
    """Boxes (x, y, width, height) that show a part of a photo of ``size`` (h, w).

    Raises ``ValueError`` that names the first that is none.
    """
    rows = _rows("boxes", boxes, ("x", "y", "width", "height"))
    for i, (x, y, width, height) in enumerate(rows):
        if min(width, height) <= 0:
            raise ValueError(f"boxes[{i}] must have a width and a height above 0, got {(x, y, width, height)}")
        if x >= size[1] or y >= size[0] or x + width <= 0 or y + height <= 0:
            photo = f"{size[1]}x{size[0]} pixels"
            raise ValueError(f"boxes[{i}] must overlap the photo of {photo}, got {(x, y, width, height)}")
    return rows


def clip_to_box(rle: Rle, box: Sequence[float]) -> Rle:
    """The part of a mask inside a box (x, y, width, height), whose border is rounded outwards to whole pixels."""
    height, width = rle["size"]
    left, top = max(0, math.floor(box[0])), max(0, math.floor(box[1]))
    right, bottom = min(width, math.ceil(box[0] + box[2])), min(height, math.ceil(box[1] + box[3]))
    corners = np.array([[left, top, right - left, bottom - top]], dtype=np.float64)
    inside = coco_mask.frPyObjects(corners, height, width)
    return dict(coco_mask.merge([rle, *inside], intersect=True))


def _rows(name: str, values: Any, fields: tuple[str, ...]) -> list[tuple[float, ...]]:
    """The entries of the argument ``name``, each of which is a finite number for each field."""
    kind = f"({', '.join(fields)})"
    if isinstance(values, Tensor | np.ndarray):
        values = values.tolist()
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise ValueError(f"{name} must be a list of {kind}, got {shown(values)}")
    if len(values) == len(fields) and all(isinstance(value, Real) for value in values):
        values = [values]
    rows = []
    for i, entry in enumerate(values):
        try:
            row = () if isinstance(entry, str | bytes | dict) else tuple(map(float, entry))
        except (TypeError, ValueError, OverflowError):
            row = ()
        if len(row) != len(fields) or not np.isfinite(row).all():
            raise ValueError(f"{name}[{i}] must be {len(fields)} finite numbers {kind}, got {shown(entry)}")
        rows.append(row)
    return rows

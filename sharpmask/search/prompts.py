"""What says which object is meant, clicks and a box, and which windows and masks agree with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from ..geometry import CANONICAL, POSITIVE_DISTANCE, POSITIVE_OCTAVES
from ..ranges import shown
from .maps import Grid
from .proposals import Rle

Numbers: TypeAlias = tuple[float, ...]

CANDIDATES: Final = 6
"""Windows of each scale that are refined for clicks, and of all scales for a box."""


class Prompt(NamedTuple):
    """What says which object is meant, in pixels of the photo."""

    points: Sequence[Numbers] = ()
    """(x, y) on the object."""
    beside: Sequence[Numbers] = ()
    """(x, y) not on the object."""
    box: Numbers | None = None
    """(x, y, width, height) around the object."""
    mask: Rle | None = None
    """An earlier mask of the object."""


def candidates(grid: Grid, prompt: Prompt, window: int, count: int) -> Tensor:
    """Positions in ``grid`` of windows of ``window`` pixels that may show the object, the likeliest of a scale first.

    Around a box, the ``count`` windows that fit it best. Else of each scale the best-scoring ``count`` windows whose
    object may cover all points, or, where there are too few, the nearest to that.
    """
    if prompt.box is not None:
        return misfit(grid, prompt.box, window).argsort(stable=True)[:count]
    x, y = torch.tensor(prompt.points, dtype=grid.x.dtype, device=grid.x.device).T
    distance = (grid.x[:, None] - x).abs().maximum((grid.y[:, None] - y).abs()).amax(1)
    short = (distance / grid.reach - 1).clamp(min=0)
    order = grid.score.argsort(descending=True, stable=True)
    order = order[short[order].argsort(stable=True)]
    scale = grid.scale[order]
    return torch.cat([order[scale == i][:count] for i in range(int(grid.scale[-1]) + 1)])


def misfit(grid: Grid, box: Numbers, window: int) -> Tensor:
    """How badly each window of ``window`` pixels fits the box (x, y, width, height): (N), 0 for a perfect fit.

    Off centre and off size are each measured in the unit within which training calls a window a positive.
    """
    x, y, width, height = box
    pixel = grid.reach / (CANONICAL * window / 2)  # of the scaled image, in image pixels
    centre = torch.hypot(grid.x - (x + width / 2), grid.y - (y + height / 2)) / (POSITIVE_DISTANCE * pixel)
    size = (torch.log2(2 * grid.reach) - np.log2(max(width, height, 1e-6))).abs() / POSITIVE_OCTAVES
    return centre.square() + size.square()


def agreement(prompt: Prompt, rles: list[Rle]) -> npt.NDArray[np.float64]:
    """How well masks agree with what was asked for, (N) in [0, 1]; 0 where others answer more clicks rightly.

    It is the share of points in the mask, times the share of points beside the object that are outside of it, times the
    overlap (IoU) of the mask's box with the one given, times its overlap with the earlier mask.
    """
    right = contained(rles, prompt.points).mean(0) * (1 - contained(rles, prompt.beside, nothing=0).mean(0))
    agreed = np.where(right == right.max(), right, 0)
    none = [0] * len(rles)
    if prompt.box is not None:
        # Masks end where the photo does.
        agreed *= coco_mask.iou(coco_mask.toBbox(rles), np.array([on_photo(prompt.box, rles[0]["size"])]), [0])[:, 0]
    if prompt.mask is not None:
        agreed *= coco_mask.iou([prompt.mask], rles, none)[0]
    return agreed


def on_photo(box: Sequence[float], size: Sequence[int]) -> list[float]:
    """The part of a box (x, y, width, height) that lies on a photo of ``size`` (h, w)."""
    (x, y, width, height), (tall, wide) = box, size
    left, top = max(0.0, x), max(0.0, y)
    return [left, top, min(x + width, wide) - left, min(y + height, tall) - top]


def contained(rles: list[Rle], points: Sequence[Numbers], nothing: float = 1) -> npt.NDArray[np.float64]:
    """For each point and mask 1 if the mask contains it, else 0: (P, N). Without points, a row of ``nothing``."""
    if not points:
        return np.full((1, len(rles)), nothing, dtype=np.float64)
    height, width = rles[0]["size"]
    pixels = [[min(int(x), width - 1), min(int(y), height - 1), 1, 1] for x, y in points]
    single = coco_mask.frPyObjects(np.array(pixels, dtype=np.float64), height, width)
    return (coco_mask.iou(single, rles, [0] * len(rles)) > 0).astype(np.float64)


def as_points(points: Any, size: tuple[int, int], name: str = "points") -> list[Numbers]:
    """Points (x, y) on a photo of ``size`` (h, w). Raises ``ValueError`` that names the first that is none."""
    height, width = size
    rows = _rows(name, points, ("x", "y"))
    for i, (x, y) in enumerate(rows):
        if not (0 <= x <= width and 0 <= y <= height):
            raise ValueError(f"{name}[{i}] must lie on the photo of {width}x{height} pixels, got {(x, y)}")
    return rows


def as_boxes(boxes: Any, size: tuple[int, int]) -> list[Numbers]:
    """Boxes (x, y, width, height) that show a part of a photo of ``size`` (h, w).

    Raises ``ValueError`` that names the first that is none.
    """
    rows = _rows("boxes", boxes, ("x", "y", "width", "height"))
    for i, (x, y, width, height) in enumerate(rows):
        if min(width, height) <= 0:
            raise ValueError(f"boxes[{i}] must have a width and a height above 0, got {(x, y, width, height)}")
        _check_on_photo(f"boxes[{i}]", rows[i], (x, y, x + width, y + height), size)
    return rows


def as_corners(boxes: Any, size: tuple[int, int], name: str = "boxes") -> list[Numbers]:
    """Boxes (x, y, width, height) of ones given by corners (x0, y0, x1, y1); see :func:`as_boxes`."""
    rows = _rows(name, boxes, ("x0", "y0", "x1", "y1"))
    for i, (x0, y0, x1, y1) in enumerate(rows):
        if x1 <= x0 or y1 <= y0:
            raise ValueError(
                f"{name}[{i}] must be corners (x0, y0, x1, y1) with x0 < x1 and y0 < y1, got {rows[i]}; "
                "of x, y, width, height they are x, y, x + width, y + height"
            )
        _check_on_photo(f"{name}[{i}]", rows[i], rows[i], size)
    return [(x0, y0, x1 - x0, y1 - y0) for x0, y0, x1, y1 in rows]


def _check_on_photo(name: str, given: Numbers, corners: Numbers, size: tuple[int, int]) -> None:
    x0, y0, x1, y1 = corners
    if x0 >= size[1] or y0 >= size[0] or x1 <= 0 or y1 <= 0:
        raise ValueError(f"{name} must overlap the photo of {size[1]}x{size[0]} pixels, got {given}")


def clip_to_box(rle: Rle, box: Numbers) -> Rle:
    """The part of a mask inside a box (x, y, width, height), whose border is rounded outwards to whole pixels."""
    height, width = rle["size"]
    left, top = max(0, math.floor(box[0])), max(0, math.floor(box[1]))
    right, bottom = min(width, math.ceil(box[0] + box[2])), min(height, math.ceil(box[1] + box[3]))
    corners = np.array([[left, top, right - left, bottom - top]], dtype=np.float64)
    inside = coco_mask.frPyObjects(corners, height, width)
    return dict(coco_mask.merge([rle, *inside], intersect=True))


def _rows(name: str, values: Any, fields: tuple[str, ...]) -> list[Numbers]:
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

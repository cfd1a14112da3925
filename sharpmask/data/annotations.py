"""Checks of the parts of a COCO annotation: segmentation (polygons or RLE), box and area."""

from __future__ import annotations

import math
from array import array
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

# pycocotools walks along polygon edges on a grid this many times finer than the pixels. It allocates memory for
# every step without a check, so the steps are limited here.
_POLYGON_GRID = 5
_MAX_POLYGON_STEPS = 50_000_000
# One number of a compressed RLE has at most so many digits of five bits. That suffices for every image that
# `read_header` accepts. At the seventh digit pycocotools' C code would shift by more bits than an int has.
_MAX_RLE_DIGITS = 6

Polygons = tuple["array[float]", ...]
Rle = dict[str, Any]
Box = tuple[float, float, float, float]


class BadEntry(ValueError):
    """An entry of the file is unusable. The text says why; the caller adds the file and the entry's id."""


def draw_polygons(polygons: Polygons, height: int, width: int) -> Rle:
    """Compressed RLE {"size": [h, w], "counts": bytes} of the union of polygons."""
    rle: Rle = coco_mask.merge(coco_mask.frPyObjects([list(p) for p in polygons], height, width))
    return rle


def decode_counts(counts: bytes) -> NDArray[np.int64]:
    """Run lengths of a compressed COCO RLE string: int64 (runs,). The first run is background.

    The string is a sequence of numbers. A number has digits of five bits, least significant first, and each digit
    is the character 48 + digit. Bit 5 of a character is set if more digits follow; bit 4 of the last digit is the
    sign. The first three numbers are run lengths; each later one is the difference to the run two before it.

    Raises ValueError for characters out of range, an unfinished number, or a number of more than 30 bits. Negative
    runs and wrong sums are left to the caller.
    """
    digits = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if digits.size == 0:
        return digits
    if digits.min() < 0 or digits.max() > 63:
        raise ValueError("RLE counts must be characters from '0' to 'o', got others")
    last = (digits & 32) == 0
    if not last[-1]:
        raise ValueError("RLE counts must be whole numbers, got a string that ends inside one")
    ends = np.flatnonzero(last) + 1
    starts = np.concatenate(([0], ends[:-1]))
    lengths = ends - starts
    if lengths.max() > _MAX_RLE_DIGITS:
        raise ValueError("RLE counts must be numbers of at most 30 bits, got a longer one")
    place = np.arange(digits.size) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((digits & 31) << (5 * place), starts)
    numbers -= np.where(digits[ends - 1] & 16, 1 << (5 * lengths), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def check_box(value: object, extent: Box, height: int, width: int) -> Box:
    """The annotated box, or `extent` (x0, y0, x1, y1) of the segmentation if there is none.

    Raises BadEntry for a box that is malformed, outside its image, or [x1, y1, x2, y2].
    """
    x0, y0, x1, y1 = extent
    if value is None:
        return x0, y0, x1 - x0, y1 - y0
    try:
        x, y, w, h = _numbers(value, 4)
    except ValueError:
        raise BadEntry(f"bbox must be [x, y, width, height], got {show(value)}") from None
    if w < 0 or h < 0 or x + w < 0 or y + h < 0 or x > width or y > height:
        raise BadEntry(f"bbox must be a box in its image of {width}x{height} pixels, got {show(value)}")
    off = max(abs(x - x0), abs(y - y0), abs(x + w - x1), abs(y + h - y1))
    if off > 4 and max(abs(x - x0), abs(y - y0), abs(w - x1), abs(h - y1)) <= 2:
        raise BadEntry(f"bbox must be [x, y, width, height], got [x1, y1, x2, y2] in {show(value)}")
    return x, y, w, h


def check_polygons(polygons: Polygons, height: int, width: int) -> Box:
    """Extent (x0, y0, x1, y1) of polygons. Raises BadEntry if they cannot be drawn, or not with bounded work."""
    if not polygons:
        raise BadEntry("segmentation must hold at least one polygon, got none")
    x0 = y0 = math.inf
    x1 = y1 = -math.inf
    doubled_area = 0.0
    points = 0
    for polygon in polygons:
        if len(polygon) < 6 or len(polygon) % 2:
            raise BadEntry(f"polygon must be x, y of at least 3 points, got {len(polygon)} coordinates")
        if not math.isfinite(sum(polygon)):
            raise BadEntry("polygon must have finite coordinates, got others")
        xs, ys = polygon[0::2], polygon[1::2]
        x0, y0, x1, y1 = min(x0, min(xs)), min(y0, min(ys)), max(x1, max(xs)), max(y1, max(ys))
        doubled_area += abs(
            sum(a * d - b * c for a, b, c, d in zip(xs, ys, xs[1:] + xs[:1], ys[1:] + ys[:1], strict=True))
        )
        points += len(xs)
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        raise BadEntry(f"polygon must overlap its image of {width}x{height} pixels, got one outside")
    if x0 < -width or y0 < -height or x1 > 2 * width or y1 > 2 * height:
        raise BadEntry(f"polygon must stay near its image of {width}x{height} pixels, got one that reaches far outside")
    if doubled_area < 1e-6:
        raise BadEntry("polygon must enclose an area, got none")
    longest_step = 3 * _POLYGON_GRID * max(height, width)
    if points * longest_step > _MAX_POLYGON_STEPS and _drawing_steps(polygons) > _MAX_POLYGON_STEPS:
        raise BadEntry(f"polygon must be short enough to draw, got {points} points")
    return x0, y0, x1, y1


def _drawing_steps(polygons: Polygons) -> float:
    """Steps that pycocotools takes along the edges of the polygons."""
    outlines = [np.frombuffer(polygon).reshape(-1, 2) for polygon in polygons]
    return _POLYGON_GRID * sum(float(np.abs(outline - np.roll(outline, 1, 0)).max(1).sum()) for outline in outlines)


def check_rle(rle: dict[str, Any], height: int, width: int) -> tuple[bytes, Box]:
    """Compressed counts and extent (x0, y0, x1, y1) of an RLE. Raises BadEntry unless its runs fill the image."""
    if rle.get("size") != [height, width]:
        raise BadEntry(f"RLE size must be [{height}, {width}] as its image, got {show(rle.get('size'))}")
    counts = rle.get("counts")
    if isinstance(counts, str):
        compressed = counts.encode("utf-8", "surrogatepass")
        try:
            runs = decode_counts(compressed)
        except ValueError as error:
            raise BadEntry(str(error)) from None
    elif isinstance(counts, list) and all(type(x) is int and 0 <= x <= height * width for x in counts):
        compressed, runs = None, np.array(counts, np.int64)
    else:
        raise BadEntry(f"RLE counts must be a string or run lengths within the image, got {show(counts)}")
    if (runs < 0).any() or runs.sum() != height * width:
        raise BadEntry(f"RLE runs must be 0 or more and sum to {height}*{width} = {height * width}, got {runs.sum()}")
    if not runs[1::2].any():
        raise BadEntry("RLE must set at least one pixel, got none")
    if compressed is None:
        compressed = coco_mask.frPyObjects(rle, height, width)["counts"]
    x, y, w, h = coco_mask.toBbox({"size": [height, width], "counts": compressed}).tolist()
    return compressed, (x, y, x + w, y + h)


def check_area(value: object) -> float | None:
    """The annotated area in pixels, None if there is none. Raises BadEntry if it is not a number of 0 or more."""
    if value is None:
        return None
    try:
        (area,) = _numbers([value], 1)
    except ValueError:
        area = -1.0
    if area < 0:
        raise BadEntry(f"area must be 0 or more pixels, got {show(value)}")
    return area


def _numbers(value: object, count: int) -> list[float]:
    """`value` as `count` floats if it is a list of so many finite numbers; otherwise raises ValueError."""
    if (
        not isinstance(value, list)
        or len(value) != count
        or not all(type(x) in (int, float) and abs(x) < 1e9 for x in value)
    ):
        raise ValueError
    return [float(x) for x in value]


def show(value: object) -> str:
    """A short one-line form of any value, for messages."""
    if value is None:
        return "nothing"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

"""Checks of the parts of a COCO annotation: segmentation (polygons or RLE), box and area."""

from __future__ import annotations

import math
from array import array
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

# pycocotools walks polygon edges on a grid this many times finer than the pixels and allocates every step
# without a check.
_POLYGON_GRID = 5
_MAX_POLYGON_STEPS = 50_000_000
# Digits of five bits in one RLE number. 2**29 exceeds every run in an image that `image_size` lets pass, and
# from the seventh digit on pycocotools' C code shifts by more bits than an int has.
_MAX_RLE_DIGITS = 6

Polygons = tuple["array[float]", ...]
Rle = dict[str, Any]
Box = tuple[float, float, float, float]


class BadEntry(ValueError):
    """One annotation or image entry is unusable; the text says why, the caller adds file and id."""


def draw_polygons(polygons: Polygons, height: int, width: int) -> Rle:
    rle: Rle = coco_mask.merge(coco_mask.frPyObjects([list(p) for p in polygons], height, width))
    return rle


def decode_counts(counts: bytes) -> NDArray[np.int64]:
    """Run lengths of a compressed COCO RLE string: int64 (runs,), the first run is background.

    The string holds numbers of five-bit digits, least significant first, one character 48 + digit each; bit 5
    of a character says that more digits follow, bit 4 of the last one is the sign. From the fourth number on
    it is the difference to the run before the previous one. Raises ValueError for anything that is no such
    string: characters out of range, an unfinished number, one of more than 30 bits. Negative runs and their
    sum are the caller's to check.
    """
    digits = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if digits.size == 0:
        return digits
    if digits.min() < 0 or digits.max() > 63:
        raise ValueError("RLE counts hold a character outside '0'..'o'")
    last = (digits & 32) == 0
    if not last[-1]:
        raise ValueError("RLE counts end inside a number")
    ends = np.flatnonzero(last) + 1
    starts = np.concatenate(([0], ends[:-1]))
    lengths = ends - starts
    if lengths.max() > _MAX_RLE_DIGITS:
        raise ValueError("RLE counts hold a number of more than 30 bits")
    place = np.arange(digits.size) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((digits & 31) << (5 * place), starts)
    numbers -= np.where(digits[ends - 1] & 16, 1 << (5 * lengths), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def check_box(value: object, extent: Box, height: int, width: int) -> Box:
    """The annotated box, or the segmentation's where there is none; `extent` is x0, y0, x1, y1."""
    x0, y0, x1, y1 = extent
    if value is None:
        return x0, y0, x1 - x0, y1 - y0
    try:
        x, y, w, h = _numbers(value, 4)
    except ValueError:
        raise BadEntry(f"expected bbox [x, y, width, height], came {show(value)}") from None
    if w < 0 or h < 0 or x + w < 0 or y + h < 0 or x > width or y > height:
        raise BadEntry(f"bbox {show(value)} is no box in an image of {width}x{height} pixels")
    off = max(abs(x - x0), abs(y - y0), abs(x + w - x1), abs(y + h - y1))
    if off > 4 and max(abs(x - x0), abs(y - y0), abs(w - x1), abs(h - y1)) <= 2:
        raise BadEntry(f"bbox {show(value)} is [x1, y1, x2, y2], expected [x, y, width, height]")
    return x, y, w, h


def check_polygons(polygons: Polygons, height: int, width: int) -> Box:
    """Extent (x0, y0, x1, y1) of polygons that pycocotools can draw with bounded work."""
    if not polygons:
        raise BadEntry("empty segmentation: expected at least one polygon")
    x0 = y0 = math.inf
    x1 = y1 = -math.inf
    doubled_area = 0.0
    points = 0
    for polygon in polygons:
        if len(polygon) < 6 or len(polygon) % 2:
            raise BadEntry(f"degenerate polygon: expected x, y of at least 3 points, came {len(polygon)} coordinates")
        if not math.isfinite(sum(polygon)):
            raise BadEntry("a polygon has a coordinate that is no finite number")
        xs, ys = polygon[0::2], polygon[1::2]
        x0, y0, x1, y1 = min(x0, min(xs)), min(y0, min(ys)), max(x1, max(xs)), max(y1, max(ys))
        doubled_area += abs(
            sum(a * d - b * c for a, b, c, d in zip(xs, ys, xs[1:] + xs[:1], ys[1:] + ys[:1], strict=True))
        )
        points += len(xs)
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        raise BadEntry(f"polygon lies outside its image of {width}x{height} pixels")
    if x0 < -width or y0 < -height or x1 > 2 * width or y1 > 2 * height:
        raise BadEntry(f"polygon reaches far outside its image of {width}x{height} pixels")
    if doubled_area < 1e-6:
        raise BadEntry("degenerate polygon: it encloses no area")
    longest_step = 3 * _POLYGON_GRID * max(height, width)
    if points * longest_step > _MAX_POLYGON_STEPS and _drawing_steps(polygons) > _MAX_POLYGON_STEPS:
        raise BadEntry(f"polygon of {points} points is too long to be drawn")
    return x0, y0, x1, y1


def _drawing_steps(polygons: Polygons) -> float:
    outlines = [np.frombuffer(polygon).reshape(-1, 2) for polygon in polygons]
    return _POLYGON_GRID * sum(float(np.abs(outline - np.roll(outline, 1, 0)).max(1).sum()) for outline in outlines)


def check_rle(rle: dict[str, Any], height: int, width: int) -> tuple[bytes, Box]:
    """Compressed counts and extent (x0, y0, x1, y1) of an RLE whose runs fill exactly this image."""
    if rle.get("size") != [height, width]:
        raise BadEntry(f"expected RLE size [{height}, {width}] as its image, came {show(rle.get('size'))}")
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
        raise BadEntry(f"expected RLE counts (a string or run lengths within the image), came {show(counts)}")
    if (runs < 0).any() or runs.sum() != height * width:
        raise BadEntry(f"RLE runs must be 0 or more and sum to {height}*{width} = {height * width}, came {runs.sum()}")
    if not runs[1::2].any():
        raise BadEntry("empty RLE: no pixel is set")
    if compressed is None:
        compressed = coco_mask.frPyObjects(rle, height, width)["counts"]
    x, y, w, h = coco_mask.toBbox({"size": [height, width], "counts": compressed}).tolist()
    return compressed, (x, y, x + w, y + h)


def check_area(value: object) -> float | None:
    if value is None:
        return None
    try:
        (area,) = _numbers([value], 1)
    except ValueError:
        area = -1.0
    if area < 0:
        raise BadEntry(f"expected an area of 0 or more pixels, came {show(value)}")
    return area


def _numbers(value: object, count: int) -> list[float]:
    """`count` finite numbers from a JSON list."""
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

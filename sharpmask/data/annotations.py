"""The mask of a COCO annotation (polygons or RLE), checked and drawn, and the checks of its numbers."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from ..errors import counted

# pycocotools walks along polygon edges on a grid this many times finer than the pixels. It allocates memory for
# every step without a check, so the steps are limited here.
_POLYGON_GRID = 5
_MAX_POLYGON_STEPS = 50_000_000
# One number of a compressed RLE has at most so many digits of five bits. That suffices for every image that
# `read_header` accepts. At the seventh digit pycocotools' C code would shift by more bits than an int has.
_MAX_RLE_DIGITS = 6
_PIECE = 2**20  # digits that are decoded at a time

Polygons = tuple["array[float]", ...]
Rle = dict[str, Any]
Box = tuple[float, float, float, float]


class BadEntry(ValueError):
    """An entry of the file is unusable. The text says why; the caller adds the file and the entry's id."""


class EmptyMask(BadEntry):
    """A mask is well-formed but sets no pixel of its image."""


class Shape(NamedTuple):
    """A checked mask. `segmentation` is polygons, or the counts of a compressed RLE."""

    segmentation: Polygons | bytes
    box: Box
    """x, y, width, height of the drawn pixels."""
    area: int
    """Number of drawn pixels."""
    extent: Box
    """x0, y0, x1, y1 of the polygons' points; of the pixels for an RLE."""


def draw_polygons(polygons: Polygons, height: int, width: int) -> Rle:
    """Compressed RLE {"size": [h, w], "counts": bytes} of the union of polygons."""
    rle: Rle = coco_mask.merge(coco_mask.frPyObjects([list(p) for p in polygons], height, width))
    return rle


def decode_counts(counts: bytes, pixels: int) -> NDArray[np.int64]:
    """Run lengths of a compressed COCO RLE string of so many `pixels`: int64 (runs,). The first run is background.

    The string is a sequence of numbers. A number has digits of five bits, least significant first, and each digit
    is the character 48 + digit. Bit 5 of a character is set if more digits follow; bit 4 of the last digit is the
    sign. The first three numbers are run lengths; each later one is the difference to the run two before it.

    Raises ValueError for a string that is longer than the pixels allow, characters out of range, an unfinished
    number, or a number of more than 30 bits. Negative runs and wrong sums are left to the caller.
    """
    # Runs of one pixel take one character each; longer ones take less than one for each pixel.
    if len(counts) > 2 * pixels + 8:
        raise ValueError(
            f"RLE counts must be at most {2 * pixels + 8} characters for {pixels} pixels, got {len(counts)}"
        )
    digits = np.frombuffer(counts, np.uint8)
    if digits.size and not 48 <= digits.min() <= digits.max() <= 111:
        raise ValueError("RLE counts must be characters from '0' to 'o', got others")
    pieces = [decode_digits(piece) for piece in _whole_numbers(digits - np.uint8(48))]
    numbers = np.concatenate([np.zeros(0, np.int64), *pieces])
    for parity in (1, 2):
        np.cumsum(numbers[parity::2], out=numbers[parity::2])
    return numbers


def _whole_numbers(digits: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """The digits in pieces that end with a number, because decoding takes several arrays as long as a piece."""
    start = 0
    while start < digits.size:
        piece = digits[start : start + _PIECE]
        tail = np.flatnonzero(piece[-_MAX_RLE_DIGITS:] < 32)
        if tail.size == 0:
            raise ValueError(
                "RLE counts must be numbers of at most 30 bits, got a longer one"
                if piece.size >= _MAX_RLE_DIGITS
                else "RLE counts must be whole numbers, got a string that ends inside one"
            )
        stop = max(piece.size - _MAX_RLE_DIGITS, 0) + int(tail[-1]) + 1
        yield piece[:stop]
        start += stop


def decode_digits(digits: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The numbers of a string of digits that ends with a number: int64."""
    ends = np.flatnonzero(digits < 32) + 1
    starts = np.concatenate(([0], ends[:-1]))
    lengths = ends - starts
    if lengths.max() > _MAX_RLE_DIGITS:
        raise ValueError("RLE counts must be numbers of at most 30 bits, got a longer one")
    place = np.arange(digits.size) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((digits.astype(np.int64) & 31) << (5 * place), starts)
    numbers -= np.where(digits[ends - 1] & 16, 1 << (5 * lengths), 0)
    return numbers


def read_shape(raw: object, height: int, width: int, left_out: list[str] | None = None) -> Shape:
    """The mask of a `segmentation` entry: a tuple of polygons (arrays of x, y, ...) or an RLE.

    With `left_out`, broken polygons that draw nothing are left out beside good ones, and a line about each is
    appended. Raises BadEntry if the mask cannot be drawn, or not with bounded work, EmptyMask if it sets no pixel.
    """
    if isinstance(raw, dict):
        return _read_rle(raw, height, width)
    if isinstance(raw, tuple) and any(isinstance(polygon, array | list) for polygon in raw):
        if len(raw) >= 3 and all(isinstance(point, array) and len(point) == 2 for point in raw):
            raise BadEntry(f"polygons must be flat lists x, y, x, y, ..., got a list of {len(raw)} points")
        return _read_polygons(raw, height, width, left_out)
    raise BadEntry(f"segmentation must be a list of polygons or an RLE, got {show(raw)}")


def rectangle(x0: float, y0: float, x1: float, y1: float, height: int, width: int) -> Shape | None:
    """The whole pixels that a rectangle touches, at least one on each side; None if it is outside the image."""
    left, top = max(0, math.floor(x0)), max(0, math.floor(y0))
    right, bottom = (min(end, max(math.ceil(x), least + 1)) for end, x, least in ((width, x1, left), (height, y1, top)))
    if right <= left or bottom <= top:
        return None
    corners = (float(left), float(top), float(right), float(bottom))
    polygon = array("d", (left, top, right, top, right, bottom, left, bottom))
    box = corners[0], corners[1], corners[2] - left, corners[3] - top
    return Shape((polygon,), box, (right - left) * (bottom - top), corners)


def _read_polygons(raw: tuple[Any, ...], height: int, width: int, left_out: list[str] | None) -> Shape:
    kept: list[array[float]] = []
    lines: list[str] = []
    for number, polygon in enumerate(raw, 1):
        try:
            _check_polygon(polygon, height, width)
            kept.append(polygon)
        except BadEntry as error:
            line = f"polygon {error}" if len(raw) == 1 else f"polygon {number} of {len(raw)} {error}"
            if left_out is None or not _draws_nothing(polygon):
                raise BadEntry(line) from None
            lines.append(line)
    if not kept:
        raise BadEntry(lines[0])
    _check_work(kept, height, width)
    extent = _extent(kept)
    if looks_normalised(extent):
        raise EmptyMask("polygons must be in pixels, got coordinates from 0 to 1 (normalised)")
    shape = _measured(tuple(kept), draw_polygons(tuple(kept), height, width), extent)
    if left_out is not None:
        left_out += lines
    return shape


def _check_polygon(polygon: object, height: int, width: int) -> None:
    if not isinstance(polygon, array):
        raise BadEntry(f"must be a list of numbers, got {show(polygon)}")
    if len(polygon) < 6 or len(polygon) % 2:
        raise BadEntry(f"must be x, y of at least 3 points, got {counted(len(polygon), 'coordinate')}")
    if not math.isfinite(sum(polygon)):
        raise BadEntry("must have finite coordinates, got others")
    x0, y0, x1, y1 = _extent([polygon])
    if x0 < -width or y0 < -height or x1 > 2 * width or y1 > 2 * height:
        raise BadEntry(f"must stay near its image of {width}x{height} pixels, got one that reaches far outside")


def _draws_nothing(polygon: object) -> bool:
    """Whether a broken polygon surely covers no pixel: it has at most two points."""
    return isinstance(polygon, array) and len(polygon) in (0, 2, 4) and math.isfinite(sum(polygon))


def _check_work(polygons: list[array[float]], height: int, width: int) -> None:
    points = sum(len(polygon) for polygon in polygons) // 2
    longest_step = 3 * _POLYGON_GRID * max(height, width)
    if points * longest_step > _MAX_POLYGON_STEPS and _drawing_steps(polygons) > _MAX_POLYGON_STEPS:
        raise BadEntry(f"segmentation must be short enough to draw, got polygons of {points} points")


def _drawing_steps(polygons: list[array[float]]) -> float:
    """Steps that pycocotools takes along the edges of the polygons."""
    outlines = [np.frombuffer(polygon).reshape(-1, 2) for polygon in polygons]
    return _POLYGON_GRID * sum(float(np.abs(outline - np.roll(outline, 1, 0)).max(1).sum()) for outline in outlines)


def _extent(polygons: list[array[float]]) -> Box:
    """x0, y0, x1, y1 of all points."""
    return (
        min(min(polygon[0::2]) for polygon in polygons),
        min(min(polygon[1::2]) for polygon in polygons),
        max(max(polygon[0::2]) for polygon in polygons),
        max(max(polygon[1::2]) for polygon in polygons),
    )


def _read_rle(rle: dict[str, Any], height: int, width: int) -> Shape:
    """An RLE whose runs fill the image."""
    if rle.get("size") != [height, width]:
        raise BadEntry(f"RLE size must be [{height}, {width}] as its image, got {show(rle.get('size'))}")
    counts, pixels = rle.get("counts"), height * width
    compressed = counts.encode("utf-8", "surrogatepass") if isinstance(counts, str) else b""
    if isinstance(counts, str):
        try:
            runs = decode_counts(compressed, pixels)
        except ValueError as error:
            raise BadEntry(str(error)) from None
    elif not isinstance(counts, list):
        raise BadEntry(f"RLE counts must be a string or run lengths, got {show(counts)}")
    elif len(counts) > 2 * pixels + 8:
        raise BadEntry(f"RLE counts must be at most {2 * pixels + 8} runs for {pixels} pixels, got {len(counts)}")
    elif all(type(x) is int and 0 <= x <= pixels for x in counts):
        runs = np.array(counts, np.int64)
    else:
        raise BadEntry(f"RLE counts must be a string or run lengths within the image, got {show(counts)}")
    if (runs < 0).any() or runs.sum() != pixels:
        raise BadEntry(f"RLE runs must be 0 or more and sum to {height}*{width} = {pixels}, got {runs.sum()}")
    if not runs[1::2].any():
        raise EmptyMask("RLE must set at least one pixel, got none")
    if not compressed:
        compressed = coco_mask.frPyObjects(rle, height, width)["counts"]
    drawn = {"size": [height, width], "counts": compressed}
    x, y, w, h = coco_mask.toBbox(drawn).tolist()
    return _measured(compressed, drawn, (x, y, x + w, y + h))


def _measured(segmentation: Polygons | bytes, drawn: Rle, extent: Box) -> Shape:
    """The shape with the box and area of its pixels. Raises EmptyMask if there are none."""
    area = int(coco_mask.area(drawn))
    if area:
        x, y, w, h = coco_mask.toBbox(drawn).tolist()
        return Shape(segmentation, (x, y, w, h), area, extent)
    height, width = drawn["size"]
    x0, y0, x1, y1 = extent
    why = "they are too thin"
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        why = "they are outside"
    raise EmptyMask(f"polygons must set at least one pixel of their image of {width}x{height}, got none: {why}")


def looks_normalised(values: Sequence[float]) -> bool:
    """Whether coordinates are shares of the image, perhaps a little beyond its border."""
    return min(values) >= -0.05 and max(values) <= 1.05


def read_box(value: object) -> Box | None:
    """The annotated x, y, width, height; None if there is none. Raises BadEntry if it is not four finite numbers."""
    if value is None or value == []:
        return None
    try:
        x, y, w, h = _numbers(value, 4)
    except ValueError:
        raise BadEntry(f"bbox must be [x, y, width, height], got {show(value)}") from None
    return x, y, w, h


def read_area(value: object) -> float | None:
    """The annotated area in pixels; None if there is none. Raises BadEntry if it is not a finite number."""
    if value is None:
        return None
    try:
        (area,) = _numbers([value], 1)
    except ValueError:
        raise BadEntry(f"area must be a number of pixels, got {show(value)}") from None
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

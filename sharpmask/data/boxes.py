"""Annotated boxes and areas, compared with the drawn masks, which are the truth."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .annotations import Box, Shape

Values = NDArray[np.float64]

# A side may be off by so many pixels, or by such a share of the longer side. Rounding, polygons' extents in place of
# pixels, and boxes that end at the last pixel instead of behind it stay below.
_PIXELS = 2.0
_SHARE = 0.05
_AREA_SHARE = 0.1
# So many boxes tell an unknown scale. Boxes that overlap their masks' by so much are loose ones and tell none: where
# objects are at nearly the same place in all photos, some scale always fits.
_SCALED_BOXES = 3
_LOOSE = 0.5


def _corners_of_centres(box: Values) -> Values:
    return np.concatenate([box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2], axis=1)


def _corners_of_sizes(box: Values) -> Values:
    return np.concatenate([box[:, :2], box[:, :2] + box[:, 2:]], axis=1)


# What four numbers may mean: functions from (n, 4) to x0, y0, x1, y1, float64 (n, 4).
_LAYOUTS: dict[str, Callable[[Values], Values]] = {
    "x, y, width, height": _corners_of_sizes,
    "x1, y1, x2, y2": lambda box: box,
    "centre x, centre y, width, height": _corners_of_centres,
    "y, x, height, width": lambda box: _corners_of_sizes(box[:, [1, 0, 3, 2]]),
    "y1, x1, y2, x2": lambda box: box[:, [1, 0, 3, 2]],
}
_UNITS = {"0..1 of the photo (normalised)": 1, "per cent of the photo": 100, "thousandths of the photo": 1000}


class Reading(NamedTuple):
    """A meaning of the annotated boxes, and which of them fit their masks so: bool (n,)."""

    name: str
    fits: NDArray[np.bool_]


class BoxAudit:
    """Compares annotated boxes and areas with drawn ones, and keeps those that differ."""

    def __init__(self) -> None:
        self.boxes = self.areas = self.off_areas = 0
        self.unreadable = 0
        self._first_area = self._first_unreadable = ""
        self._ids: list[int] = []
        self._rows = array("d")  # of each box that differs: as annotated, drawn x0 y0 x1 y1, width and height of photo

    def add(self, key: int, box: Box | None, area: float | None, shape: Shape, height: int, width: int) -> None:
        """Compare the box and area of annotation `key`, where it has them."""
        x, y, w, h = shape.box
        drawn = (x, y, x + w, y + h)
        if box is not None:
            self.boxes += 1
            given = (box[0], box[1], box[0] + box[2], box[1] + box[3])
            if not _near(given, drawn) and not _near(given, shape.extent):
                self._ids.append(key)
                self._rows.extend((*box, *drawn, width, height))
        if area is not None:
            self.areas += 1
            if abs(area - shape.area) > max(_AREA_SHARE * shape.area, 2 * (w + h)):
                self._first_area = self._first_area or f"annotation {key}: area {area:g} of {shape.area} pixels"
                self.off_areas += 1

    def add_unreadable(self, key: int, problem: Exception) -> None:
        """Count annotation `key`, of whose box and area one cannot be read."""
        self.unreadable += 1
        self._first_unreadable = self._first_unreadable or f"annotation {key}: {problem}"

    def notes(self, file: Path) -> list[str]:
        """Lines about boxes and areas that differ. Raises DataError if most boxes have another meaning."""
        rows = np.frombuffer(self._rows).reshape(-1, 10)
        self._refuse_other_reading(file, rows)
        notes = []
        if self._ids:
            notes.append(
                f"{file}: boxes that differ from their masks, which count: {len(self._ids)} of {self.boxes}; "
                f"first: {self._example(rows, 0)}"
            )
        if self.off_areas:
            notes.append(
                f"{file}: areas that differ from their masks', which count: {self.off_areas} of {self.areas}; "
                f"first: {self._first_area}"
            )
        if self.unreadable:
            notes.append(
                f"{file}: annotations with an unreadable box or area beside their mask, which counts: "
                f"{self.unreadable}; first: {self._first_unreadable}"
            )
        return notes

    def _refuse_other_reading(self, file: Path, rows: Values) -> None:
        given, drawn, size = rows[:, :4], rows[:, 4:8], rows[:, 8:]
        # Boxes of nothing or of the whole photo are placeholders and say nothing about the others.
        whole = (np.abs(_corners_of_sizes(given) - np.pad(size, ((0, 0), (2, 0)))) <= _PIXELS).all(1)
        telling = np.flatnonzero(~whole & (given[:, 2:] != 0).any(1))
        most = (self.boxes - len(rows) + len(telling)) / 2
        best = max(_readings(given[telling], drawn[telling], size[telling]), key=lambda reading: reading.fits.sum())
        count = int(best.fits.sum())
        if count > most:
            first = self._example(rows, int(telling[np.flatnonzero(best.fits)[0]]))
            raise DataError(
                f"{file}: bbox must be [x, y, width, height] in pixels around the mask, but {count} of {self.boxes} "
                f"are {best.name}; write them so or leave bbox out; first: {first}"
            )

    def _example(self, rows: Values, row: int) -> str:
        box, (x0, y0, x1, y1) = _listed(rows[row, :4]), rows[row, 4:8]
        mask = _listed(np.array([x0, y0, x1 - x0, y1 - y0]))
        return f"annotation {self._ids[row]}: bbox {box}, its mask's {mask}"


def _readings(given: Values, drawn: Values, size: Values) -> Iterator[Reading]:
    """All readings other than the documented one, those with fixed units first."""
    sizes = np.tile(size, 2)
    for layout, corners in _LAYOUTS.items():
        if layout != "x, y, width, height":
            yield Reading(f"[{layout}]", _fit(corners(given), drawn))
        for unit, whole in _UNITS.items():
            yield Reading(f"[{layout}] in {unit}", _fit(corners(given) * sizes / whole, drawn))
    if len(given) < _SCALED_BOXES:
        return
    apart = _overlap(_corners_of_sizes(given), drawn) < _LOOSE
    for layout, corners in _LAYOUTS.items():
        found = corners(given)
        scale = _ratio(found, drawn)
        yield Reading(f"[{layout}] of photos scaled by {scale:.3g}", apart & _fit(found / scale, drawn))
        shares = drawn / sizes
        width, height = (_ratio(found[:, axis::2], shares[:, axis::2]) for axis in (0, 1))
        resized = found / np.array([width, height] * 2) * sizes
        fits = apart & _fit(resized, drawn)
        yield Reading(f"[{layout}] of photos resized to {width:.0f}x{height:.0f}", fits)


def _ratio(found: Values, wanted: Values) -> float:
    """The median of the factors by which the boxes are too large; 1 where there is none."""
    factor = float(np.median(found.sum(1) / np.maximum(wanted.sum(1), 1e-9)))
    return factor if factor > 0 else 1.0


def _overlap(a: Values, b: Values) -> Values:
    """IoU of boxes x0, y0, x1, y1, one by one; 0 for boxes without an area."""
    both = np.maximum(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0).prod(1)
    either = sum(np.maximum(box[:, 2:] - box[:, :2], 0).prod(1) for box in (a, b)) - both
    return np.asarray(both / np.maximum(either, 1e-9))


def _fit(corners: Values, drawn: Values) -> NDArray[np.bool_]:
    """Which boxes are near the drawn ones."""
    longest = (drawn[:, 2:] - drawn[:, :2]).max(1)
    off: Values = np.abs(corners - drawn).max(1)
    return off <= np.maximum(_PIXELS, _SHARE * longest)


def _near(corners: Box, wanted: Box) -> bool:
    x0, y0, x1, y1 = wanted
    off = max(abs(a - b) for a, b in zip(corners, wanted, strict=True))
    return off <= max(_PIXELS, _SHARE * max(x1 - x0, y1 - y0))


def _listed(box: Values) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in box) + "]"

"""The objects of a COCO file: its annotations, read, checked and drawn one by one."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from ..errors import DataError, counted
from .annotations import (
    BadEntry,
    Box,
    EmptyMask,
    Polygons,
    Rle,
    Shape,
    draw_polygons,
    looks_normalised,
    read_area,
    read_box,
    read_shape,
    rectangle,
    show,
)
from .boxes import BoxAudit

Size = tuple[int, int]

USUAL_CROWDS = 0.1
"""Share of annotations up to which crowds need no remark; COCO has 1 %."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One annotated object.

    `box` is (x, y, width, height) and `area` the number of the mask's pixels, both as drawn. `crowd` marks a region
    that is no example of one object. `segmentation` is the checked content of the file: polygons, or the counts of
    a compressed RLE.
    """

    id: int
    category_id: int
    box: Box
    area: float
    crowd: bool
    height: int
    width: int
    segmentation: Polygons | bytes

    @property
    def rle(self) -> Rle:
        """Compressed COCO RLE {"size": [h, w], "counts": bytes}. Polygons are drawn anew at each access."""
        if isinstance(self.segmentation, bytes):
            return {"size": [self.height, self.width], "counts": self.segmentation}
        return draw_polygons(self.segmentation, self.height, self.width)

    def mask(self) -> NDArray[np.bool_]:
        """The object's pixels, bool (h, w) of the whole photo."""
        pixels: NDArray[np.uint8] = coco_mask.decode(self.rle)
        return pixels.astype(bool)


@dataclass
class _Found:
    """Annotations with a peculiarity: how many, and the id of the first."""

    ids: list[int] = field(default_factory=list)

    def note(self, text: str) -> Iterator[str]:
        if self.ids:
            yield f"annotations {text}: {len(self.ids)}; first: annotation {self.ids[0]}"


class ObjectReader:
    """Turns the entries of `annotations` into instances, by photo.

    `known` maps ids of categories to names, `selected` those to read. `sizes` has (height, width) by photo, None
    for a photo that is left out. `reject` reports a bad entry; where it returns, the object becomes an ignored
    region, since its place is no background. `lenient` allows to leave a broken polygon out beside good ones.
    """

    def __init__(
        self,
        file: Path,
        known: Mapping[int, str],
        selected: Mapping[int, str],
        sizes: Mapping[int, Size | None],
        reject: Callable[[str], None],
        *,
        lenient: bool,
    ) -> None:
        self.file, self.known, self.selected, self.sizes = file, known, selected, sizes
        self.instances: dict[int, list[Instance]] = {key: [] for key, size in sizes.items() if size is not None}
        self.doubtful: set[int] = set()
        """Photos with an object left out that nobody can locate."""
        self._reject, self._lenient = reject, lenient
        self._audit = BoxAudit()
        self._box_only, self._without_area, self._numbered, self._crowds = _Found(), _Found(), _Found(), _Found()
        self._drawn = 0

    def read(self, entries: list[Any]) -> list[str]:
        """Read all entries. Returns lines about what was read in another way than written."""
        self._refuse_normalised(entries)
        given = [entry["id"] for entry in entries if isinstance(entry, dict) and type(entry.get("id")) is int]
        free, seen = count(max(given, default=0) + 1), set[int]()
        for position, entry in enumerate(entries):
            if not isinstance(entry, dict):
                where = f"{self.file}: annotation at position {position}"
                self._reject(f"{where}: must be an object, got {show(entry)}")
                continue
            key = entry.get("id")
            problem = None
            if key is None:
                key = next(free)
                self._numbered.ids.append(key)
            elif type(key) is not int:
                problem = f"annotation at position {position}: id must be an integer, got {show(key)}"
                key = next(free)
            elif key in seen:
                problem = f"annotation {key}: id must be unique, but it occurs more than once"
                key = next(free)
            seen.add(key)
            self._read(key, entry, problem)
        texts = [
            *self._box_only.note("with a box but no mask, ignored as crowds are"),
            *self._without_area.note("without an area, ignored"),
            *self._numbered.note("without an id, numbered on from the highest"),
        ]
        if len(self._crowds.ids) > USUAL_CROWDS * self._drawn:
            hint = "neither learned nor counted (set iscrowd to 0 where one is a single object)"
            texts += self._crowds.note(f"that are crowds, of {self._drawn}, {hint}")
        return [f"{self.file}: {text}" for text in texts] + self._audit.notes(self.file)

    def _refuse_normalised(self, entries: list[Any]) -> None:
        """Raise DataError if most polygons have coordinates from 0 to 1."""
        polygons = (entry["segmentation"] for entry in entries if isinstance(entry, dict) and _has_numbers(entry))
        total = normalised = 0
        first: object = None
        for mask in polygons:
            total += 1
            if all(looks_normalised((min(polygon), max(polygon))) for polygon in mask):
                normalised += 1
                first = first or [round(value, 3) for value in mask[0][:4]]
        if normalised > total / 2:
            raise DataError(
                f"{self.file}: polygons must be in pixels, got coordinates from 0 to 1 (normalised) in {normalised} of "
                f"{counted(total, 'annotation')}; multiply x by the width and y by the height of the photo; "
                f"first: {show(first)}"
            )

    def _read(self, key: int, entry: dict[str, Any], problem: str | None) -> None:
        """Read an entry. `problem` says what is wrong with its id."""
        where = f"annotation {key}"
        try:
            image_id = _reference(entry, "image_id", self.sizes)
        except BadEntry as error:
            self._reject(f"{self.file}: {problem or f'{where}: {error}'}")
            return
        size = self.sizes[image_id]
        if size is None:  # A rejected image has been reported already.
            return
        try:
            category = _reference(entry, "category_id", self.known)
            if category not in self.selected:
                return
            if problem is None:
                instance = self._instance(key, category, entry, *size)
                if instance is not None:
                    self.instances[image_id].append(instance)
                return
        except BadEntry as error:
            problem = problem or f"{where}: {error}"
        self._reject(f"{self.file}: {problem}")
        self._ignore(key, image_id, entry, *size)

    def _ignore(self, key: int, image_id: int, entry: dict[str, Any], height: int, width: int) -> None:
        """Make an object that is left out an ignored region, or its photo doubtful."""
        region = _known_region(entry, height, width)
        if region is None:
            self.doubtful.add(image_id)
            return
        category = entry.get("category_id")
        if type(category) is not int or category not in self.selected:
            category = min(self.selected, default=0)
        self.instances[image_id].append(_instance(key, category, region, True, height, width))

    def _instance(self, key: int, category: int, entry: dict[str, Any], height: int, width: int) -> Instance | None:
        """The object of an entry; None if it has no area. Raises BadEntry if the entry is unusable."""
        crowd = entry.get("iscrowd")
        if crowd not in (0, 1, None):
            raise BadEntry(f"iscrowd must be 0 or 1, got {show(crowd)}")
        raw = entry.get("segmentation")
        box, area, unreadable = _box_and_area(entry)
        if unreadable is not None and _is_empty(raw):
            raise unreadable
        # Two objects of COCO itself are lines without an area, and their entries say so.
        flat = box is None or min(box[2:]) == 0
        empty = flat and (area == 0 or (area is None and box is not None and any(box)))
        if _is_empty(raw):
            if empty:
                self._without_area.ids.append(key)
                return None
            region = _region_of_box(box, height, width)
            self._box_only.ids.append(key)
            return _instance(key, category, region, True, height, width)
        left_out: list[str] | None = [] if self._lenient else None
        try:
            shape = read_shape(raw, height, width, left_out)
        except EmptyMask:
            if not empty:
                raise
            self._without_area.ids.append(key)
            return None
        for line in left_out or ():
            self._reject(f"{self.file}: annotation {key}: {line}")
        self._audit.add(key, box, area, shape, height, width)
        if unreadable is not None:
            self._audit.add_unreadable(key, unreadable)
        self._drawn += 1
        if crowd:
            self._crowds.ids.append(key)
        return _instance(key, category, shape, bool(crowd), height, width)


def _instance(key: int, category: int, shape: Shape, crowd: bool, height: int, width: int) -> Instance:
    return Instance(key, category, shape.box, float(shape.area), crowd, height, width, shape.segmentation)


def _box_and_area(entry: dict[str, Any]) -> tuple[Box | None, float | None, BadEntry | None]:
    """The annotated box and area, and why one cannot be read: then neither tells anything."""
    try:
        return read_box(entry.get("bbox")), read_area(entry.get("area")), None
    except BadEntry as error:
        return None, None, error


def _reference(entry: dict[str, Any], field: str, known: Mapping[int, Any]) -> int:
    """The id in `field`. Raises BadEntry if it is not one of `known`."""
    value = entry.get(field)
    if type(value) is not int or value not in known:
        raise BadEntry(f"{field} must be an id in the same file, got {show(value)}")
    return value


def _is_empty(raw: object) -> bool:
    """Whether a segmentation names no mask at all: it is missing, null, [] or [[]]."""
    return raw is None or raw == {} or (isinstance(raw, tuple) and not any(_is_filled(polygon) for polygon in raw))


def _is_filled(polygon: object) -> bool:
    return not isinstance(polygon, array) or len(polygon) > 0


def _has_numbers(entry: dict[str, Any]) -> bool:
    """Whether the mask of an entry is polygons of numbers, none of them empty."""
    raw = entry.get("segmentation")
    return isinstance(raw, tuple) and bool(raw) and all(isinstance(polygon, array) and polygon for polygon in raw)


def _region_of_box(box: Box | None, height: int, width: int) -> Shape:
    """The region of an object that has a box alone. Raises BadEntry unless it has one in its image, in pixels."""
    if box is None:
        raise BadEntry("segmentation must be polygons or an RLE, got nothing, and no bbox either")
    x, y, w, h = box
    region = rectangle(x, y, x + w, y + h, height, width) if min(w, h) > 0 else None
    if region is None or looks_normalised(box):
        raise BadEntry(
            f"bbox must be a box in pixels of its image of {width}x{height} where there is no segmentation, "
            f"got {show(list(box))}"
        )
    return region


def _known_region(entry: dict[str, Any], height: int, width: int) -> Shape | None:
    """Where a broken object is: its mask if that can be drawn, otherwise a rectangle around all known of it."""
    raw = entry.get("segmentation")
    try:
        return read_shape(raw, height, width)
    except BadEntry:
        pass
    points = [
        (x, y)
        for polygon in (raw if isinstance(raw, tuple) else ())
        if isinstance(polygon, array)
        for x, y in zip(polygon[0::2], polygon[1::2], strict=False)
        if 0 <= x <= width and 0 <= y <= height
    ]
    corners = []
    if points and not all(looks_normalised(point) for point in points):
        xs, ys = zip(*points, strict=True)
        corners = [(min(xs), min(ys)), (max(xs), max(ys))]
    try:
        region = _region_of_box(read_box(entry.get("bbox")), height, width)
    except BadEntry:
        region = None
    # A box of the whole image is a placeholder, so the polygons tell more.
    if region is not None and not (corners and region.area == height * width):
        x, y, w, h = region.box
        corners += [(x, y), (x + w, y + h)]
    if not corners:
        return None
    xs, ys = zip(*corners, strict=True)
    return rectangle(min(xs), min(ys), max(xs), max(ys), height, width)

"""A folder of photos with a COCO `instances` file: read, checked and ready to sample from."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from sharpmask.data.images import ImageCache, image_size, load_image
from sharpmask.errors import DataError

# pycocotools walks polygon edges on a grid this many times finer than the pixels and allocates every step
# without a check.
_POLYGON_GRID = 5
_MAX_POLYGON_STEPS = 50_000_000
# Digits of five bits in one RLE number. 2**29 exceeds every run in an image that `image_size` lets pass, and
# from the seventh digit on pycocotools' C code shifts by more bits than an int has.
_MAX_RLE_DIGITS = 6
_SKIP_HINT = "(skip_bad=True, on the command line --skip-bad, leaves such entries out)"

Polygons = tuple["array[float]", ...]
Rle = dict[str, Any]
Box = tuple[float, float, float, float]


class _Bad(ValueError):
    """One annotation or image entry is unusable; the text says why, the caller adds file and id."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One annotated object.

    `box` is (x, y, width, height) in pixels, `area` in pixels; `crowd` marks a region with many objects that
    is no single example. `segmentation` is what the file holds, checked: polygons, or a compressed RLE.
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
        """Compressed COCO RLE {"size": [h, w], "counts": bytes}, checked. Polygons are drawn on each call."""
        if isinstance(self.segmentation, bytes):
            return {"size": [self.height, self.width], "counts": self.segmentation}
        return _draw(self.segmentation, self.height, self.width)

    def mask(self) -> NDArray[np.bool_]:
        """The object's pixels, bool (h, w) of the whole photo."""
        pixels: NDArray[np.uint8] = coco_mask.decode(self.rle)
        return pixels.astype(bool)


@dataclass(frozen=True, slots=True)
class Photo:
    """One image of the folder; `height` and `width` were compared with the file's header."""

    id: int
    path: Path
    height: int
    width: int
    instances: tuple[Instance, ...]

    def load(self) -> NDArray[np.uint8]:
        """Decode the photo: uint8 (h, w, 3), RGB, in stored pixel order. Raises DataError if damaged."""
        return load_image(self.path, apply_exif=False)


class CocoFolder:
    """Images plus COCO `instances` annotations (polygons, RLE, crowds).

    Layout: `root/images/*` (or `root/*`) and `root/instances.json` (or else the only
    `root/annotations/instances*.json`); `annotations` names another file. `categories` keeps only objects of
    these category names; photos left without objects stay.

    Checked now: the JSON, ids, sizes, boxes, polygons, RLEs, and of every image its presence and its header.
    Pixels are decoded and polygons drawn on request only, so that all of COCO fits into memory. A bad entry
    raises DataError, one line naming file and id; with `skip_bad` it is left out and the line is appended to
    `skipped`.

    `photos` are sorted by id, their instances too; `categories` maps id to name (after the filter).
    """

    def __init__(
        self,
        root: str | Path,
        *,
        annotations: str | Path | None = None,
        categories: Sequence[str] | None = None,
        skip_bad: bool = False,
    ) -> None:
        self.root = Path(root)
        self.annotation_file = Path(annotations) if annotations is not None else find_annotations(self.root)
        self.skip_bad = skip_bad
        self.skipped: list[str] = []
        self.cache = ImageCache()
        document = _read_document(self.annotation_file)
        known = self._read_categories(document["categories"])
        self.categories = self._select(known, categories)
        sizes = self._read_images(document["images"])
        self.photos = self._read_annotations(document["annotations"], known, sizes)

    def load(self, photo: Photo) -> NDArray[np.uint8]:
        """`photo`'s pixels through this folder's cache of decoded photos: read-only uint8 (h, w, 3).

        Raises DataError if the file is damaged or no longer has the size it had when the folder was read.
        """
        image = self.cache.load(photo.path)
        if image.shape[:2] != (photo.height, photo.width):
            raise DataError(
                f"{photo.path}: expected {photo.width}x{photo.height} pixels (width x height), "
                f"came {image.shape[1]}x{image.shape[0]}"
            )
        return image

    def ground_truth(self) -> dict[str, Any]:
        """Everything kept, as a COCO `instances` dict: JSON-serialisable, masks as compressed RLE."""
        return {
            "images": [
                {"id": photo.id, "file_name": photo.path.name, "height": photo.height, "width": photo.width}
                for photo in self.photos
            ],
            "categories": [{"id": key, "name": name} for key, name in self.categories.items()],
            "annotations": [_to_coco(photo, instance) for photo in self.photos for instance in photo.instances],
        }

    def _reject(self, line: str) -> None:
        if not self.skip_bad:
            raise DataError(f"{line} {_SKIP_HINT}")
        self.skipped.append(line)

    def _entries(self, entries: list[Any], kind: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """Entries that are objects with an integer id no earlier entry has."""
        seen: set[int] = set()
        where = f"{self.annotation_file}: {kind}"
        for position, entry in enumerate(entries):
            if not isinstance(entry, dict):
                self._reject(f"{where} at position {position}: expected an object, came {_show(entry)}")
            elif type(entry.get("id")) is not int:
                self._reject(f"{where} at position {position}: expected an integer id, came {_show(entry.get('id'))}")
            elif entry["id"] in seen:
                self._reject(f"{where} {entry['id']}: this id occurs more than once")
            else:
                seen.add(entry["id"])
                yield entry["id"], entry

    def _read_categories(self, entries: list[Any]) -> dict[int, str]:
        names: dict[int, str] = {}
        for key, entry in self._entries(entries, "category"):
            if isinstance(entry.get("name"), str):
                names[key] = entry["name"]
            else:
                came = _show(entry.get("name"))
                self._reject(f"{self.annotation_file}: category {key}: expected a name, came {came}")
        return names

    def _select(self, known: dict[int, str], names: Sequence[str] | None) -> dict[int, str]:
        if names is None:
            return known
        for name in names:
            if name not in known.values():
                raise DataError(
                    f"{self.annotation_file}: no category {name!r}, known are: "
                    f"{', '.join(sorted(set(known.values()))) or 'none'}"
                )
        return {key: name for key, name in known.items() if name in names}

    def _read_images(self, entries: list[Any]) -> dict[int, tuple[Path, int, int] | None]:
        """Path, height and width by image id; None for images that were rejected."""
        folder = self.root / "images"
        folder = folder if folder.is_dir() else self.root
        images: dict[int, tuple[Path, int, int] | None] = {}
        for key, entry in self._entries(entries, "image"):
            try:
                images[key] = _check_image(entry, folder)
            except (_Bad, DataError) as error:
                images[key] = None
                self._reject(f"{self.annotation_file}: image {key}: {error}")
        return images

    def _read_annotations(
        self, entries: list[Any], known: dict[int, str], images: dict[int, tuple[Path, int, int] | None]
    ) -> list[Photo]:
        instances: dict[int, list[Instance]] = {key: [] for key, image in images.items() if image is not None}
        for key, entry in self._entries(entries, "annotation"):
            try:
                image_id = _reference(entry, "image_id", images)
                category = _reference(entry, "category_id", known)
                image = images[image_id]
                if image is not None and category in self.categories:  # a rejected image was reported already
                    instances[image_id].append(_check_annotation(key, category, entry, *image[1:]))
            except _Bad as error:
                self._reject(f"{self.annotation_file}: annotation {key}: {error}")
        return [
            Photo(key, *image, tuple(sorted(instances[key], key=lambda instance: instance.id)))
            for key, image in sorted(images.items())
            if image is not None
        ]


def find_annotations(root: Path) -> Path:
    """`root/instances.json` or else the only `root/annotations/instances*.json`; DataError without either."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    if (root / "instances.json").is_file():
        return root / "instances.json"
    found = sorted((root / "annotations").glob("instances*.json"))
    if len(found) != 1:
        raise DataError(
            f"{root}: expected instances.json or exactly one annotations/instances*.json, "
            f"found {len(found)}; name the file with annotations= (--annotations)"
        )
    return found[0]


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


def _read_document(path: Path) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file, object_hook=_compact)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON (truncated?): {error}") from None
    if not isinstance(document, dict):
        raise DataError(f"{path}: expected a COCO instances object, came a {type(document).__name__}")
    for section in ("images", "annotations", "categories"):
        if not isinstance(document.get(section), list):
            raise DataError(f"{path}: expected a list {section!r}, came {_show(document.get(section))}")
    return document


def _compact(entry: dict[str, Any]) -> dict[str, Any]:
    """Pack polygons while parsing: lists of Python floats take four times the memory."""
    polygons = entry.get("segmentation")
    if isinstance(polygons, list):
        with suppress(TypeError, OverflowError):  # left as it came: reported with the annotation's id
            entry["segmentation"] = tuple(array("d", polygon) for polygon in polygons)
    return entry


def _show(value: object) -> str:
    """A short one-line form of any value, for messages."""
    if value is None:
        return "nothing"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _numbers(value: object, count: int) -> list[float]:
    """`count` finite numbers from a JSON list."""
    if (
        not isinstance(value, list)
        or len(value) != count
        or not all(type(x) in (int, float) and abs(x) < 1e9 for x in value)
    ):
        raise ValueError
    return [float(x) for x in value]


def _reference(entry: dict[str, Any], field: str, known: dict[int, Any]) -> int:
    value = entry.get(field)
    if type(value) is not int or value not in known:
        raise _Bad(f"unknown {field} {_show(value)}")
    return value


def _check_image(entry: dict[str, Any], folder: Path) -> tuple[Path, int, int]:
    name, height, width = entry.get("file_name"), entry.get("height"), entry.get("width")
    if not isinstance(name, str) or not name or not name.isprintable():
        raise _Bad(f"expected a file_name, came {_show(name)}")
    if Path(name).anchor or ".." in Path(name).parts:
        raise _Bad(f"file_name {name!r} leads out of {folder}")
    path = folder / name
    stored = image_size(path)
    if (height, width) == stored:
        return path, *stored
    turned = "; the file was probably annotated after EXIF turning, store it upright" * ((width, height) == stored)
    raise _Bad(
        f"{path}: expected {_show(width)}x{_show(height)} pixels (width x height) as annotated, "
        f"came {stored[1]}x{stored[0]}{turned}"
    )


def _check_annotation(key: int, category: int, entry: dict[str, Any], height: int, width: int) -> Instance:
    crowd = entry.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise _Bad(f"expected iscrowd 0 or 1, came {_show(crowd)}")
    raw = entry.get("segmentation")
    segmentation: Polygons | bytes
    if isinstance(raw, tuple):
        extent = _check_polygons(raw, height, width)
        segmentation = raw
    elif isinstance(raw, dict):
        segmentation, extent = _check_rle(raw, height, width)
    else:
        raise _Bad(f"expected a segmentation (polygons or RLE), came {_show(raw)}")
    box = _check_box(entry.get("bbox"), extent, height, width)
    area = _check_area(entry.get("area"))
    instance = Instance(key, category, box, area or 0.0, bool(crowd), height, width, segmentation)
    return instance if area is not None else replace(instance, area=float(coco_mask.area(instance.rle)))


def _check_area(value: object) -> float | None:
    if value is None:
        return None
    try:
        (area,) = _numbers([value], 1)
    except ValueError:
        area = -1.0
    if area < 0:
        raise _Bad(f"expected an area of 0 or more pixels, came {_show(value)}")
    return area


def _check_box(value: object, extent: Box, height: int, width: int) -> Box:
    """The annotated box, or the segmentation's where there is none; `extent` is x0, y0, x1, y1."""
    x0, y0, x1, y1 = extent
    if value is None:
        return x0, y0, x1 - x0, y1 - y0
    try:
        x, y, w, h = _numbers(value, 4)
    except ValueError:
        raise _Bad(f"expected bbox [x, y, width, height], came {_show(value)}") from None
    if w < 0 or h < 0 or x + w < 0 or y + h < 0 or x > width or y > height:
        raise _Bad(f"bbox {_show(value)} is no box in an image of {width}x{height} pixels")
    off = max(abs(x - x0), abs(y - y0), abs(x + w - x1), abs(y + h - y1))
    if off > 4 and max(abs(x - x0), abs(y - y0), abs(w - x1), abs(h - y1)) <= 2:
        raise _Bad(f"bbox {_show(value)} is [x1, y1, x2, y2], expected [x, y, width, height]")
    return x, y, w, h


def _check_polygons(polygons: Polygons, height: int, width: int) -> Box:
    """Extent (x0, y0, x1, y1) of polygons that pycocotools can draw with bounded work."""
    if not polygons:
        raise _Bad("empty segmentation: expected at least one polygon")
    x0 = y0 = math.inf
    x1 = y1 = -math.inf
    doubled_area = 0.0
    points = 0
    for polygon in polygons:
        if len(polygon) < 6 or len(polygon) % 2:
            raise _Bad(f"degenerate polygon: expected x, y of at least 3 points, came {len(polygon)} coordinates")
        if not math.isfinite(sum(polygon)):
            raise _Bad("a polygon has a coordinate that is no finite number")
        xs, ys = polygon[0::2], polygon[1::2]
        x0, y0, x1, y1 = min(x0, min(xs)), min(y0, min(ys)), max(x1, max(xs)), max(y1, max(ys))
        doubled_area += abs(
            sum(a * d - b * c for a, b, c, d in zip(xs, ys, xs[1:] + xs[:1], ys[1:] + ys[:1], strict=True))
        )
        points += len(xs)
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        raise _Bad(f"polygon lies outside its image of {width}x{height} pixels")
    if x0 < -width or y0 < -height or x1 > 2 * width or y1 > 2 * height:
        raise _Bad(f"polygon reaches far outside its image of {width}x{height} pixels")
    if doubled_area < 1e-6:
        raise _Bad("degenerate polygon: it encloses no area")
    longest_step = 3 * _POLYGON_GRID * max(height, width)
    if points * longest_step > _MAX_POLYGON_STEPS and _drawing_steps(polygons) > _MAX_POLYGON_STEPS:
        raise _Bad(f"polygon of {points} points is too long to be drawn")
    return x0, y0, x1, y1


def _drawing_steps(polygons: Polygons) -> float:
    outlines = [np.frombuffer(polygon).reshape(-1, 2) for polygon in polygons]
    return _POLYGON_GRID * sum(float(np.abs(outline - np.roll(outline, 1, 0)).max(1).sum()) for outline in outlines)


def _check_rle(rle: dict[str, Any], height: int, width: int) -> tuple[bytes, Box]:
    """Compressed counts and extent (x0, y0, x1, y1) of an RLE whose runs fill exactly this image."""
    if rle.get("size") != [height, width]:
        raise _Bad(f"expected RLE size [{height}, {width}] as its image, came {_show(rle.get('size'))}")
    counts = rle.get("counts")
    if isinstance(counts, str):
        compressed = counts.encode("utf-8", "surrogatepass")
        try:
            runs = decode_counts(compressed)
        except ValueError as error:
            raise _Bad(str(error)) from None
    elif isinstance(counts, list) and all(type(x) is int and 0 <= x <= height * width for x in counts):
        compressed, runs = None, np.array(counts, np.int64)
    else:
        raise _Bad(f"expected RLE counts (a string or run lengths within the image), came {_show(counts)}")
    if (runs < 0).any() or runs.sum() != height * width:
        raise _Bad(f"RLE runs must be 0 or more and sum to {height}*{width} = {height * width}, came {runs.sum()}")
    if not runs[1::2].any():
        raise _Bad("empty RLE: no pixel is set")
    if compressed is None:
        compressed = coco_mask.frPyObjects(rle, height, width)["counts"]
    x, y, w, h = coco_mask.toBbox({"size": [height, width], "counts": compressed}).tolist()
    return compressed, (x, y, x + w, y + h)


def _draw(polygons: Polygons, height: int, width: int) -> Rle:
    rle: Rle = coco_mask.merge(coco_mask.frPyObjects([list(p) for p in polygons], height, width))
    return rle


def _to_coco(photo: Photo, instance: Instance) -> dict[str, Any]:
    rle = instance.rle
    return {
        "id": instance.id,
        "image_id": photo.id,
        "category_id": instance.category_id,
        "bbox": list(instance.box),
        "area": instance.area,
        "iscrowd": int(instance.crowd),
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
    }

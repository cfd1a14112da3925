"""A folder of photos with a COCO `instances` file: read, checked and ready to sample from."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from ..errors import DataError
from .annotations import (
    BadEntry,
    Box,
    Polygons,
    Rle,
    check_area,
    check_box,
    check_polygons,
    check_rle,
    draw_polygons,
    show,
)
from .images import ImageCache, image_size, load_image

_SKIP_HINT = "(skip_bad=True, on the command line --skip-bad, leaves such entries out)"


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
        return draw_polygons(self.segmentation, self.height, self.width)

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
                self._reject(f"{where} at position {position}: expected an object, came {show(entry)}")
            elif type(entry.get("id")) is not int:
                self._reject(f"{where} at position {position}: expected an integer id, came {show(entry.get('id'))}")
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
                came = show(entry.get("name"))
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
            except (BadEntry, DataError) as error:
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
            except BadEntry as error:
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
            raise DataError(f"{path}: expected a list {section!r}, came {show(document.get(section))}")
    return document


def _compact(entry: dict[str, Any]) -> dict[str, Any]:
    """Pack polygons while parsing: lists of Python floats take four times the memory."""
    polygons = entry.get("segmentation")
    if isinstance(polygons, list):
        with suppress(TypeError, OverflowError):  # left as it came: reported with the annotation's id
            entry["segmentation"] = tuple(array("d", polygon) for polygon in polygons)
    return entry


def _reference(entry: dict[str, Any], field: str, known: dict[int, Any]) -> int:
    value = entry.get(field)
    if type(value) is not int or value not in known:
        raise BadEntry(f"unknown {field} {show(value)}")
    return value


def _check_image(entry: dict[str, Any], folder: Path) -> tuple[Path, int, int]:
    name, height, width = entry.get("file_name"), entry.get("height"), entry.get("width")
    if not isinstance(name, str) or not name or not name.isprintable():
        raise BadEntry(f"expected a file_name, came {show(name)}")
    if Path(name).anchor or ".." in Path(name).parts:
        raise BadEntry(f"file_name {name!r} leads out of {folder}")
    path = folder / name
    stored = image_size(path)
    if (height, width) == stored:
        return path, *stored
    turned = "; the file was probably annotated after EXIF turning, store it upright" * ((width, height) == stored)
    raise BadEntry(
        f"{path}: expected {show(width)}x{show(height)} pixels (width x height) as annotated, "
        f"came {stored[1]}x{stored[0]}{turned}"
    )


def _check_annotation(key: int, category: int, entry: dict[str, Any], height: int, width: int) -> Instance:
    crowd = entry.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise BadEntry(f"expected iscrowd 0 or 1, came {show(crowd)}")
    raw = entry.get("segmentation")
    segmentation: Polygons | bytes
    if isinstance(raw, tuple):
        extent = check_polygons(raw, height, width)
        segmentation = raw
    elif isinstance(raw, dict):
        segmentation, extent = check_rle(raw, height, width)
    else:
        raise BadEntry(f"expected a segmentation (polygons or RLE), came {show(raw)}")
    box = check_box(entry.get("bbox"), extent, height, width)
    area = check_area(entry.get("area"))
    instance = Instance(key, category, box, area or 0.0, bool(crowd), height, width, segmentation)
    return instance if area is not None else replace(instance, area=float(coco_mask.area(instance.rle)))


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

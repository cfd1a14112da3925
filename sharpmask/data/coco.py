"""A folder of photos with a COCO `instances` file, read and checked."""

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
from .images import ImageCache, load_image, read_header

_SKIP_HINT = "(skip_bad=True, or --skip-bad on the command line, leaves such entries out)"


@dataclass(frozen=True, slots=True)
class Instance:
    """One annotated object.

    `box` is (x, y, width, height) in pixels, `area` is in pixels. `crowd` marks a region of many objects, which is
    no example of one. `segmentation` is the checked content of the file: polygons, or the counts of a compressed RLE.
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


@dataclass(frozen=True, slots=True)
class Photo:
    """One image of the folder. `height` and `width` agree with the header of the image file."""

    id: int
    path: Path
    height: int
    width: int
    instances: tuple[Instance, ...]

    def load(self) -> NDArray[np.uint8]:
        """Decode the photo: uint8 (h, w, 3), RGB, not turned by EXIF. Raises DataError if it is damaged."""
        return load_image(self.path, exif="stored")


class CocoFolder:
    """Images plus COCO `instances` annotations (polygons, RLE, crowds).

    Photos are read from `root/images`, or from `root` if there is no such folder. Annotations are read from
    `root/instances.json`, otherwise from the only `root/annotations/instances*.json`, unless `annotations` names
    another file. `categories` keeps only the objects of these category names; photos without objects stay.

    The constructor checks the JSON, ids, sizes, boxes, polygons and RLEs, and the presence and header of every
    image. Pixels are decoded and polygons drawn only on request, so that all of COCO fits into memory. A bad entry
    raises DataError with one line that names the file and the id. With `skip_bad` the entry is left out instead and
    the line is appended to `skipped`.

    `photos` and their instances are sorted by id. `categories` maps ids to names, after the filter.
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
        """The pixels of `photo` from a cache of decoded photos: read-only uint8 (h, w, 3), RGB.

        Raises DataError if the file is damaged or no longer has the size it had when the folder was read.
        """
        image = self.cache.load(photo.path)
        if image.shape[:2] != (photo.height, photo.width):
            raise DataError(
                f"{photo.path}: must be {photo.width}x{photo.height} pixels (width x height), "
                f"got {image.shape[1]}x{image.shape[0]}"
            )
        return image

    def ground_truth(self) -> dict[str, Any]:
        """All photos and objects as a COCO `instances` dict that JSON can hold, with masks as compressed RLE."""
        return {
            "images": [
                {"id": photo.id, "file_name": photo.path.name, "height": photo.height, "width": photo.width}
                for photo in self.photos
            ],
            "categories": [{"id": key, "name": name} for key, name in self.categories.items()],
            "annotations": [_to_coco(photo, instance) for photo in self.photos for instance in photo.instances],
        }

    def _reject(self, line: str) -> None:
        """Report a bad entry: note it with `skip_bad`, raise DataError without."""
        if not self.skip_bad:
            raise DataError(f"{line} {_SKIP_HINT}")
        self.skipped.append(line)

    def _entries(self, entries: list[Any], kind: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """The entries with their ids. Rejects those that are no objects, or have no integer id or a repeated one."""
        seen: set[int] = set()
        where = f"{self.annotation_file}: {kind}"
        for position, entry in enumerate(entries):
            if not isinstance(entry, dict):
                self._reject(f"{where} at position {position}: must be an object, got {show(entry)}")
            elif type(entry.get("id")) is not int:
                self._reject(f"{where} at position {position}: id must be an integer, got {show(entry.get('id'))}")
            elif entry["id"] in seen:
                self._reject(f"{where} {entry['id']}: id must be unique, but it occurs more than once")
            else:
                seen.add(entry["id"])
                yield entry["id"], entry

    def _read_categories(self, entries: list[Any]) -> dict[int, str]:
        names: dict[int, str] = {}
        for key, entry in self._entries(entries, "category"):
            if isinstance(entry.get("name"), str):
                names[key] = entry["name"]
            else:
                got = show(entry.get("name"))
                self._reject(f"{self.annotation_file}: category {key}: name must be a text, got {got}")
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
        """Path, height and width by image id; None for a rejected image."""
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
                # A rejected image has been reported already.
                if image is not None and category in self.categories:
                    instances[image_id].append(_check_annotation(key, category, entry, *image[1:]))
            except BadEntry as error:
                self._reject(f"{self.annotation_file}: annotation {key}: {error}")
        return [
            Photo(key, *image, tuple(sorted(instances[key], key=lambda instance: instance.id)))
            for key, image in sorted(images.items())
            if image is not None
        ]


def find_annotations(root: Path) -> Path:
    """`root/instances.json`, otherwise the only `root/annotations/instances*.json`. Raises DataError without either."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    if (root / "instances.json").is_file():
        return root / "instances.json"
    found = sorted((root / "annotations").glob("instances*.json"))
    if len(found) != 1:
        raise DataError(
            f"{root}: must hold instances.json or exactly one annotations/instances*.json, "
            f"got {len(found)}; name the file with annotations= (--annotations)"
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
        raise DataError(f"{path}: must be a COCO instances object, got a {type(document).__name__}")
    for section in ("images", "annotations", "categories"):
        if not isinstance(document.get(section), list):
            raise DataError(f"{path}: {section!r} must be a list, got {show(document.get(section))}")
    return document


def _compact(entry: dict[str, Any]) -> dict[str, Any]:
    """Store the polygons of an entry as arrays, because lists of Python floats take four times the memory."""
    polygons = entry.get("segmentation")
    if isinstance(polygons, list):
        # A wrong value stays as it is and is reported later, with the annotation's id.
        with suppress(TypeError, OverflowError):
            entry["segmentation"] = tuple(array("d", polygon) for polygon in polygons)
    return entry


def _reference(entry: dict[str, Any], field: str, known: dict[int, Any]) -> int:
    """The id in `field`. Raises BadEntry if it is not one of `known`."""
    value = entry.get(field)
    if type(value) is not int or value not in known:
        raise BadEntry(f"{field} must be an id in the same file, got {show(value)}")
    return value


def _check_image(entry: dict[str, Any], folder: Path) -> tuple[Path, int, int]:
    """Path, height and width of an image entry. Raises BadEntry or DataError if the file is not as annotated."""
    name, height, width = entry.get("file_name"), entry.get("height"), entry.get("width")
    if not isinstance(name, str) or not name or not name.isprintable():
        raise BadEntry(f"file_name must be a printable text, got {show(name)}")
    if Path(name).anchor or ".." in Path(name).parts:
        raise BadEntry(f"file_name must stay in {folder}, got {name!r}")
    path = folder / name
    stored = read_header(path).size("stored")
    if (height, width) == stored:
        return path, *stored
    turned = "; it was probably annotated after turning by EXIF, so store it upright" * ((width, height) == stored)
    raise BadEntry(
        f"{path}: must be {show(width)}x{show(height)} pixels (width x height) as annotated, "
        f"got {stored[1]}x{stored[0]}{turned}"
    )


def _check_annotation(key: int, category: int, entry: dict[str, Any], height: int, width: int) -> Instance:
    """An object of an image of (height, width). Raises BadEntry if its annotation is unusable."""
    crowd = entry.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise BadEntry(f"iscrowd must be 0 or 1, got {show(crowd)}")
    raw = entry.get("segmentation")
    segmentation: Polygons | bytes
    if isinstance(raw, tuple):
        extent = check_polygons(raw, height, width)
        segmentation = raw
    elif isinstance(raw, dict):
        segmentation, extent = check_rle(raw, height, width)
    else:
        raise BadEntry(f"segmentation must be polygons or an RLE, got {show(raw)}")
    box = check_box(entry.get("bbox"), extent, height, width)
    area = check_area(entry.get("area"))
    instance = Instance(key, category, box, area or 0.0, bool(crowd), height, width, segmentation)
    return instance if area is not None else replace(instance, area=float(coco_mask.area(instance.rle)))


def _to_coco(photo: Photo, instance: Instance) -> dict[str, Any]:
    """An object as an entry of a COCO `instances` file."""
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

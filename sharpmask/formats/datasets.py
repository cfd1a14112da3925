"""Data sets of labelme, Pascal VOC and YOLO (segmentation) as COCO ``instances``."""

from __future__ import annotations

import base64
import codecs
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image
from pycocotools import mask as coco_mask

from ..data.formats import photo_suffixes
from ..data.images import read_header
from ..data.orientation import Exif
from ..errors import DataError
from ..packages import needed
from ..plain import read_yaml
from ..ranges import shown
from .polygons import Mask

Layout: TypeAlias = Literal["labelme", "voc", "yolo"]
Size: TypeAlias = tuple[int, int]
MOST_BYTES: Final = 1 << 28
"""The largest file of annotations of one photo."""


class Object(NamedTuple):
    """An annotated object: a mask, or where there is none a box (x, y, width, height)."""

    label: str
    mask: Mask | None
    box: tuple[float, ...] = ()


class Annotated(NamedTuple):
    """A photo, and what tells its objects for its size (h, w)."""

    photo: Path
    objects: Callable[[Size], Iterator[Object]]


def convert(root: Path, layout: Layout | None = None, exif: Exif | None = None) -> tuple[dict[str, Any], list[str]]:
    """A folder of annotated photos as a COCO ``instances`` document, and lines about what was left out.

    ``layout``: by default the only one that the folder has files of. ``exif``: which pixels of photos with an EXIF
    orientation were annotated. Names of files are relative to ``root``. Polygons are drawn as supervision draws them,
    with their border. Raises ``DataError`` that names the file.
    """
    layout = layout or layout_of(root)
    notes = Counter[str]()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    labels: list[str] = []
    seen: set[str] = set()
    for number, (photo, objects) in enumerate(READERS[layout](root, notes), 1):
        height, width = photo_size(photo, exif)
        name = photo.relative_to(root).as_posix()
        if name in seen:
            raise DataError(f"{photo}: must be annotated by one file, got two, each without the objects of the other")
        seen.add(name)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for label, mask, box in objects((height, width)):
            labels.append(label)
            entry = {"id": len(labels), "image_id": number, "category_id": 0, "iscrowd": 0}
            annotations.append(entry | shape_of(mask, box))
    if not images:
        raise DataError(f"{root}: must hold photos annotated in the layout {layout}, got none")
    known = {label: i for i, label in enumerate(sorted(set(labels)), 1)}
    for entry, label in zip(annotations, labels, strict=True):
        entry["category_id"] = known[label]
    categories = [{"id": i, "name": label} for label, i in known.items()]
    boxes = sum(not entry["segmentation"] for entry in annotations)
    if boxes:
        notes["boxes without a mask, which count as crowds:"] = boxes
    return (
        {"images": images, "annotations": annotations, "categories": categories},
        [f"{what} {count}" for what, count in notes.items()],
    )


def shape_of(mask: Mask | None, box: tuple[float, ...]) -> dict[str, Any]:
    """The fields of an annotation that say where it is."""
    if mask is None:
        return {"segmentation": [], "bbox": [*box], "area": box[2] * box[3]}
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    counts = rle["counts"].decode("ascii")
    place = [float(v) for v in coco_mask.toBbox(rle)]
    return {"segmentation": {"size": [*mask.shape], "counts": counts}, "bbox": place, "area": int(mask.sum())}


def layout_of(root: Path) -> Layout:
    """The layout that a folder is in. Raises ``DataError`` where that is not clear."""
    found = [name for name in get_args(Layout) if next(_files(root, name), None)]
    if not found:
        raise DataError(f"{root}: must hold annotations in one of the layouts {', '.join(get_args(Layout))}, got none")
    if len(found) > 1:
        raise DataError(
            f"{root}: must be in one of the layouts {', '.join(get_args(Layout))}, got files of {len(found)}: "
            f"{', '.join(found)}; say which with --layout"
        )
    return found[0]


def photo_size(photo: Path, exif: Exif | None) -> Size:
    """(h, w) of the pixels that were annotated. Raises ``DataError`` for a photo of which that is not said."""
    header = read_header(photo)
    if header.orientation != 1 and exif is None:
        raise DataError(
            f"{photo}: has EXIF orientation {header.orientation}; say which pixels were annotated: --exif turned, as "
            "viewers show the photo, or --exif stored"
        )
    return header.size(exif or "stored")


def _files(root: Path, layout: Layout) -> Iterator[Path]:
    """The files of annotations of a folder."""
    pattern = {"labelme": "*.json", "voc": "*.xml", "yolo": "labels/**/*.txt"}[layout]
    return (path for path in sorted(root.rglob(pattern)) if layout != "labelme" or _is_labelme(path))


def _is_labelme(path: Path) -> bool:
    """Whether a JSON has the key of labelme's shapes, also in an encoding that is refused later."""
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    return any('"shapes"'.encode(encoding) in content for encoding in ("utf-8", "utf-16-le", "utf-16-be"))


def _text(path: Path, encoding_of: Callable[[bytes], str] = lambda _: "utf-8-sig") -> str:
    """A file of annotations, in the encoding that is told for its content."""
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise DataError(f"{path}: must have at most {MOST_BYTES} bytes, got {size}")
        content = path.read_bytes()
        return content.decode(encoding_of(content))
    # LookupError: an encoding that Python does not know. Texts that it decodes may be damaged in other ways.
    except (OSError, ValueError, LookupError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read: {error}") from None


def _xml_encoding(content: bytes) -> str:
    """The encoding that an XML file declares, or shows by its first bytes; UTF-8 where it does neither."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    declared = re.match(rb"""(?:\xef\xbb\xbf)?<\?xml[^>]*?\sencoding\s*=\s*["']([\w.-]+)["']""", content[:200])
    name = declared[1].decode("ascii") if declared else "utf-8"
    return "utf-8-sig" if name.lower() in ("utf-8", "utf8") else name


def _photo(root: Path, source: Path, name: Any, *places: Path) -> Path:
    """The photo that ``source`` calls ``name``, by its path or name alone in one of ``places``, inside of ``root``."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise DataError(f"{source}: must name its photo, got {shown(name)}")
    path = Path(name.replace("\\", "/"))
    for place in (place / form for place in places for form in (path, path.name)):
        inside = Path(os.path.normpath(place))
        if inside.is_relative_to(os.path.normpath(root)) and inside.is_file():
            return root / inside.relative_to(os.path.normpath(root))
    raise DataError(f"{source}: its photo must be in {root}, got {shown(name)}, which is not there")


def checked(box: Sequence[float], size: Size, where: str) -> tuple[float, ...]:
    """A box (x, y, width, height) that shows a part of the photo. Raises ``DataError`` that names ``where``."""
    x, y, width, height = map(float, box)
    # Comparisons with NaN are false.
    if not (0 < width < np.inf and 0 < height < np.inf and -width < x < size[1] and -height < y < size[0]):
        raise DataError(
            f"{where}: a box must have a size and lie on the photo of {size[1]}x{size[0]}, got x, y, width, height "
            f"{x:g}, {y:g}, {width:g}, {height:g}"
        )
    return x, y, width, height


def drawn(polygons: Sequence[Any], size: Size, where: str) -> Mask:
    """The pixels of a photo that polygons, lists of points (x, y), draw. Raises ``DataError`` that names ``where``."""
    draw = needed("supervision", "convert-dataset").polygon_to_mask
    mask = np.zeros(size, dtype=bool)
    for polygon in polygons:
        try:
            points = np.array(polygon, dtype=np.float64).reshape(-1, 2)
        except (TypeError, ValueError, OverflowError):
            points = np.zeros((0, 2))
        if len(points) < 3 or not (np.abs(points) <= 4 * max(size)).all():
            raise DataError(
                f"{where}: a polygon must be three or more points (x, y) on the photo, got {shown(polygon)}"
            )
        mask |= draw(np.round(points).astype(np.int32), resolution_wh=(size[1], size[0])) > 0
    if not mask.any():
        raise DataError(f"{where}: must have a pixel on the photo of {size[1]}x{size[0]}, got none")
    return mask


def _labelme(root: Path, notes: Counter[str]) -> Iterator[Annotated]:
    """Photos with a JSON of labelme each."""
    for path in _files(root, "labelme"):
        text = _text(path)
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: cannot be read as JSON: {error}") from None
        shapes = document.get("shapes") if isinstance(document, dict) else None
        if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
            raise DataError(f"{path}: shapes must be a list of objects, got {shown(shapes)}")
        photo = _photo(root, path, document.get("imagePath"), path.parent)
        given = document.get("imageHeight"), document.get("imageWidth")
        yield Annotated(photo, partial(_labelme_objects, path, shapes, given, notes))


def _labelme_objects(
    path: Path, shapes: list[dict[str, Any]], given: tuple[Any, Any], notes: Counter[str], size: Size
) -> Iterator[Object]:
    if any(told not in (None, real) for told, real in zip(given, size, strict=True)):
        raise DataError(f"{path}: imageHeight and imageWidth must be the photo's {size} or null, got {given}")
    objects: dict[Any, list[dict[str, Any]]] = {}
    for i, shape in enumerate(shapes):
        if shape.get("shape_type", "polygon") not in ("polygon", "rectangle", "mask"):
            notes[f"shapes of type {shown(shape['shape_type'])}, left out:"] += 1
            continue
        # Shapes of one label and group are parts of one object.
        group = shape.get("group_id")
        objects.setdefault(i if group is None else (str(shape.get("label")), str(group)), []).append(shape)
    for parts in objects.values():
        masks = [_labelme_mask(path, part, size) for part in parts]
        yield Object(str(parts[0].get("label")), np.logical_or.reduce(masks))


def _labelme_mask(path: Path, shape: dict[str, Any], size: Size) -> Mask:
    """The pixels of one shape."""
    where, points = f"{path}: {shown(shape.get('label'))}", shape.get("points")
    if shape.get("shape_type", "polygon") == "polygon":
        return drawn([points], size, where)
    try:
        (x0, y0), (x1, y1) = np.sort(np.array(points, dtype=np.float64).reshape(2, 2), axis=0).tolist()
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{where}: points must be two corners (x, y), got {shown(points)}") from None
    if shape["shape_type"] == "rectangle":
        return drawn([[(x0, y0), (x1, y0), (x1, y1), (x0, y1)]], size, where)
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape.get("mask") or "")), formats=["PNG"]) as picture:
            if picture.height > size[0] or picture.width > size[1]:
                raise ValueError(f"it has {picture.width}x{picture.height} pixels")
            part = np.asarray(picture.convert("L")) > 0
            if not part.any():
                raise ValueError("it has no pixel")
    except (OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: mask must be a PNG of at most the photo's size, in base64: {error}") from None
    mask = np.zeros(size, dtype=bool)
    if not np.isfinite([x0, y0, x1, y1]).all():
        raise DataError(f"{where}: points must be finite, got {shown(points)}")
    left, top = int(x0), int(y0)
    if left < 0 or top < 0 or left + part.shape[1] > size[1] or top + part.shape[0] > size[0]:
        raise DataError(f"{where}: mask must lie on the photo of {size[1]}x{size[0]}, got its corner {left, top}")
    mask[top : top + part.shape[0], left : left + part.shape[1]] = part
    return mask


def _voc(root: Path, notes: Counter[str]) -> Iterator[Annotated]:
    """Photos with an XML of Pascal VOC each."""
    parse = needed("defusedxml.ElementTree", "convert-dataset").fromstring
    for path in _files(root, "voc"):
        text = _text(path, _xml_encoding)
        try:
            tree = parse(text)
        except (SyntaxError, ValueError) as error:  # what is no XML, or would be expanded
            raise DataError(f"{path}: cannot be read as XML: {error}") from None
        above = path.parent.parent
        photo = _photo(
            root, path, tree.findtext("filename"), above / "JPEGImages", above / "images", path.parent, above
        )
        yield Annotated(photo, partial(_voc_objects, path, tree))


def _voc_objects(path: Path, tree: Any, size: Size) -> Iterator[Object]:
    """Masks are those of SegmentationObject, or else polygons as supervision writes them; coordinates count from 1."""
    index = _voc_index(path.parent.parent / "SegmentationObject" / f"{path.stem}.png", size)
    for number, node in enumerate(tree.findall("object"), 1):
        label = node.findtext("name") or ""
        where = f"{path}: {shown(label)}"
        try:
            corners = [float(node.findtext(f"bndbox/{name}")) for name in ("xmin", "ymin", "xmax", "ymax")]
            polygons = [
                np.array([coordinate.text for coordinate in polygon], dtype=np.float64).reshape(-1, 2) - 1
                for polygon in node.findall("polygon")
            ]
        except (TypeError, ValueError):
            raise DataError(f"{where}: bndbox and polygon must be numbers") from None
        x, y = corners[0] - 1, corners[1] - 1
        box = checked((x, y, corners[2] - x, corners[3] - y), size, where)
        mask = drawn(polygons, size, where) if polygons else None
        if index is not None and (index == number).any():
            mask = index == number
        yield Object(label, mask, box)


def _voc_index(path: Path, size: Size) -> npt.NDArray[np.uint8] | None:
    """At each pixel the number of its object, counted from 1 as they are annotated; None without such a picture."""
    if not path.is_file():
        return None
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            if picture.size != size[::-1] or picture.mode not in ("L", "P"):
                raise ValueError(f"it is {picture.width}x{picture.height} of mode {picture.mode}")
            return np.asarray(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: must be an 8-bit PNG of the photo's size {size[1]}x{size[0]}: {error}") from None


def _yolo(root: Path, notes: Counter[str]) -> Iterator[Annotated]:
    """Photos in folders ``images``, with a text of the same name in ``labels`` each, or as background without one."""
    names = _yolo_names(root)
    left = set(_files(root, "yolo"))
    for photo in sorted(root.rglob("images/**/*")):
        if photo.suffix.lower() in photo_suffixes() and photo.is_file():
            parts = list(photo.relative_to(root).with_suffix(".txt").parts)
            last = len(parts) - 1 - parts[::-1].index("images")
            label = root.joinpath(*parts[:last], "labels", *parts[last + 1 :])
            left.discard(label)
            yield Annotated(photo, partial(_yolo_objects, label, names))
    lost = sorted(path for path in left if path.name != "classes.txt")
    if lost:
        raise DataError(f"{lost[0]}: must have its photo of the same name in a folder images, got none")


def _yolo_names(root: Path) -> dict[int, str]:
    """The classes by number, of the folder's data.yaml."""
    path = next((path for path in (root / "data.yaml", root / "dataset.yaml") if path.is_file()), None)
    if path is None:
        raise DataError(f"{root}: must hold data.yaml, which names the classes, got none")
    content = read_yaml(path, "convert-dataset of YOLO", "formats")
    names = content.get("names") if isinstance(content, dict) else None
    if not isinstance(names, list | dict):
        raise DataError(f"{path}: names must be a list, got {shown(names)}")
    return {i: str(name) for i, name in (names.items() if isinstance(names, dict) else enumerate(names))}


def _yolo_objects(path: Path, names: dict[int, str], size: Size) -> Iterator[Object]:
    scale = size[1], size[0]
    for number, line in enumerate(_text(path).splitlines() if path.is_file() else (), 1):
        where = f"{path}: line {number}"
        try:
            kind, *rest = map(float, line.split() or ["nan"])
        except ValueError:
            raise DataError(f"{where}: must be numbers, got {shown(line)}") from None
        if not line.strip():
            continue
        if kind not in names:
            raise DataError(f"{where}: must begin with the number of a class in data.yaml, got {shown(line)}")
        if len(rest) in (4, 5):
            x, y, width, height = np.array(rest[:4]) * (*scale, *scale)
            box = checked((x - width / 2, y - height / 2, width, height), size, where)
            yield Object(names[int(kind)], None, box)
        else:
            # An odd number at the end is a confidence.
            points = np.array(rest[: len(rest) // 2 * 2]).reshape(-1, 2) * scale
            yield Object(names[int(kind)], drawn([points], size, where))


READERS: Final[dict[Layout, Callable[[Path, Counter[str]], Iterator[Annotated]]]] = {
    "labelme": _labelme,
    "voc": _voc,
    "yolo": _yolo,
}

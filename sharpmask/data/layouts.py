"""Where programs that export COCO data put the annotation file and the photos."""

from __future__ import annotations

import json
import os
import unicodedata
from array import array
from contextlib import suppress
from pathlib import Path, PureWindowsPath
from typing import Any

from ..errors import DataError
from .annotations import BadEntry, show

# Names in the folder itself. COCO's own stands first; then Roboflow's, labelme's and Label Studio's.
_NAMES = ("instances.json", "_annotations.coco.json", "annotations.json", "result.json", "result_coco.json")
# Places where one file alone is taken. Roboflow puts its files into the folders train, valid and test.
_PLACES = ("annotations/instances*.json", "*/_annotations.coco.json", "*.json", "annotations/*.json")
_SECTIONS = ("images", "annotations", "categories")


def find_annotations(root: Path) -> Path:
    """The annotation file of a folder: `instances.json`, or the only one that another program's layout has.

    Raises DataError if there is none, or more than one.
    """
    if not os.path.isdir(root):
        raise DataError(f"{root}: no such folder")
    if os.path.isfile(root / _NAMES[0]):
        return root / _NAMES[0]
    named = [root / name for name in _NAMES if os.path.isfile(root / name)]
    for found in (named, *(sorted(path for path in root.glob(place) if os.path.isfile(path)) for place in _PLACES)):
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(str(path.relative_to(root)) for path in found[:4])
            raise DataError(
                f"{root}: must hold one annotation file, got {len(found)} ({names}{', ...' * (len(found) > 4)}); "
                "name the file with annotations= (--annotations), or the folder of one part"
            )
    raise DataError(
        f"{root}: must hold an annotation file ({', '.join(_NAMES)} or annotations/instances*.json), got 0; "
        "name the file with annotations= (--annotations)"
    )


def read_document(path: Path) -> dict[str, Any]:
    """The JSON of an annotation file, with polygons as arrays. Raises DataError if it is no COCO `instances` file."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise DataError(f"{path}: must be a regular file")
    try:
        with open(path, "rb") as head:
            encoding = json.detect_encoding(head.read(4))  # also by the mark that Windows programs put first
        with open(path, encoding=encoding) as file:
            document = json.load(file, object_hook=_compact)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON (truncated?): {error}") from None
    if not isinstance(document, dict):
        raise DataError(f"{path}: must be a COCO instances object, got a {type(document).__name__}")
    for section in _SECTIONS:
        if not isinstance(document.get(section), list):
            raise DataError(f"{path}: {section!r} must be a list, got {show(document.get(section))}")
    return document


def _compact(entry: dict[str, Any]) -> dict[str, Any]:
    """Store the polygons of an entry as arrays, because lists of Python floats take four times the memory."""
    polygons = entry.get("segmentation")
    if isinstance(polygons, list):
        entry["segmentation"] = tuple(map(_as_array, polygons))
    return entry


def _as_array(polygon: Any) -> Any:
    # A wrong value stays as it is and is reported later, with the annotation's id.
    with suppress(TypeError, OverflowError):
        return array("d", polygon)
    return polygon


def _is_printable(character: str) -> bool:
    """Whether names may hold a character: also any kind of space, and the joiners of Persian and of emoji."""
    return character.isprintable() or unicodedata.category(character) == "Zs" or character in "\u200c\u200d"


class PhotoFiles:
    """Finds the photo files of a data set."""

    def __init__(self, root: Path, annotation_file: Path) -> None:
        part, beside = annotation_file.stem.removeprefix("instances_"), annotation_file.parent
        places = [root / "images", root / "images" / part, root / part, root, root / "data"]
        if beside.is_relative_to(root):  # a part of the data set, such as Roboflow's folder train
            places += [beside / "images", beside]
        self._folders = [folder for folder in dict.fromkeys(places) if os.path.isdir(folder)]

    def find(self, name: object) -> Path:
        """The file called `name` in an image entry. Raises BadEntry for a name that leaves the folder."""
        if not isinstance(name, str) or not name or not all(map(_is_printable, name)):
            raise BadEntry(f"file_name must be a printable text, got {show(name)}")
        windows = PureWindowsPath(name)
        if Path(name).anchor or windows.root or windows.is_absolute() or ".." in windows.parts:
            raise BadEntry(f"file_name must stay in {self._folders[0]} and be relative to it, got {show(name)}")
        # Archives made on macOS may hold the letters of names and their accents apart.
        forms = [name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))]
        for spelling in dict.fromkeys((*forms, *(form.replace("\\", "/") for form in forms))):
            for folder in self._folders:
                if os.path.exists(folder / spelling):
                    return folder / spelling
        return self._folders[0] / name

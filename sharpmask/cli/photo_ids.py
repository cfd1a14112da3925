"""Names and numbers of photos that stay theirs when other photos come, go, or change places."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..data.photos import FoundPhoto
from ..files import short_name

HASHED = 1 << 52
"""Ids below are numbers that photos have for names; those from here up are hashes. JSON's readers keep both exact."""


class SearchedPhoto(NamedTuple):
    """A photo to search, and under what names its results go."""

    path: Path
    id: int
    name: str
    """What its results call it: its folder and file name, such as holiday/IMG_1.jpg. No other photo has it."""
    part: str
    """The name of the file of its results."""


def numbered(photos: Sequence[FoundPhoto]) -> list[SearchedPhoto]:
    """The photos with ids for COCO results.

    A photo whose file name is a number has that for its id, unless another photo of the run is called by the same
    number. The id of every other photo is a hash of its ``name``: of the folder that was given, or that the given
    file is in, and the path below it. Where two photos share even that, their whole paths take its place.
    """
    names = [_name(photo) for photo in photos]
    count = Counter(names)
    names = [
        name if count[name] == 1 else Path(os.path.abspath(photo.path)).as_posix()
        for name, photo in zip(names, photos, strict=True)
    ]
    numbers = Counter(number for photo in photos if (number := _number(photo.path)) is not None)
    ids: dict[str, int] = {}
    taken: set[int] = set()
    for name, photo in sorted(zip(names, photos, strict=True)):
        number = _number(photo.path)
        ids[name] = number if number is not None and numbers[number] == 1 else _hash(name, taken)
        taken.add(ids[name])
    return [
        SearchedPhoto(photo.path, ids[name], name, short_name(f"{photo.path.stem}-{ids[name]}.json"))
        for photo, name in zip(photos, names, strict=True)
    ]


def _name(photo: FoundPhoto) -> str:
    """The photo's path below the folder that was given, and that folder's name."""
    parts = Path(os.path.abspath(photo.path)).parts
    return "/".join(parts[-len(Path(photo.name).parts) - 1 :])


def _number(path: Path) -> int | None:
    """The number that is a file's name, such as 123 of 000123.jpg."""
    stem = path.stem
    number = int(stem) if stem.isascii() and stem.isdecimal() and len(stem) <= 20 else HASHED
    return number if number < HASHED else None


def _hash(name: str, taken: set[int]) -> int:
    """An id from ``HASHED`` up that no other photo has."""
    digest = hashlib.sha256(os.fsencode(name)).digest()
    number = int.from_bytes(digest[:8], "big") % HASHED
    while number + HASHED in taken:
        number = (number + 1) % HASHED
    return number + HASHED

"""Names and numbers of photos that stay theirs when other photos come, go, or change places."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
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


def numbered(
    photos: Sequence[FoundPhoto], has_results: Callable[[SearchedPhoto], bool] = lambda _: False
) -> list[SearchedPhoto]:
    """The photos with ids for COCO results.

    A photo whose file name is a number has that for its id, unless another photo of the run is called by the same
    number. The id of every other photo is a hash of its ``name``: of the folder that was given, or that the given
    file is in, and the path below it. Where two photos share even that, their whole paths take its place.

    A photo that ``has_results`` under a name and an id which it would have in another run keeps these.
    """
    names = Counter(map(_name, photos))
    numbers = Counter(_number(photo.path) for photo in photos)
    found: dict[Path, SearchedPhoto] = {}
    taken: set[int | str] = set()
    for photo in sorted(photos, key=lambda photo: (_name(photo), photo.path)):
        short, whole, number = _name(photo), Path(os.path.abspath(photo.path)).as_posix(), _number(photo.path)
        first, *others = [
            _searched(photo, name, own)
            for name in ([short, whole] if names[short] == 1 else [whole, short])
            for own in _ids(number, numbers[number] == 1, _hash(name, taken))
        ]
        free = (other for other in others if not {other.id, other.name} & taken)
        found[photo.path] = own = first if has_results(first) else next(filter(has_results, free), first)
        taken |= {own.id, own.name}
    return [found[photo.path] for photo in photos]


def _ids(number: int | None, unique: bool, hashed: int) -> list[int]:
    """The ids that a photo may have, the usual one first."""
    if number is None:
        return [hashed]
    return [number, hashed] if unique else [hashed, number]


def _searched(photo: FoundPhoto, name: str, number: int) -> SearchedPhoto:
    return SearchedPhoto(photo.path, number, name, short_name(f"{photo.path.stem}-{number}.json"))


def _name(photo: FoundPhoto) -> str:
    """The photo's path below the folder that was given, and that folder's name."""
    parts = Path(os.path.abspath(photo.path)).parts
    return "/".join(parts[-len(Path(photo.name).parts) - 1 :])


def _number(path: Path) -> int | None:
    """The number that is a file's name, such as 123 of 000123.jpg."""
    stem = path.stem
    number = int(stem) if stem.isascii() and stem.isdecimal() and len(stem) <= 20 else HASHED
    return number if number < HASHED else None


def _hash(name: str, taken: set[int | str]) -> int:
    """An id from ``HASHED`` up that no other photo has."""
    digest = hashlib.sha256(os.fsencode(name)).digest()
    number = int.from_bytes(digest[:8], "big") % HASHED
    while number + HASHED in taken:
        number = (number + 1) % HASHED
    return number + HASHED

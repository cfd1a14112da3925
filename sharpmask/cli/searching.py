"""The search of many photos: one that fails stops no other, and a stopped search goes on. PyTorch is not needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from rich.progress import track

from ..errors import DataError
from .output import ERR, is_out_of_memory, say
from .parts import Entries, Parts, Searched, content_of

P = TypeVar("P", bound=Searched)

ATTEMPTS = 3
"""How often photos are searched whose results vanish while the command runs."""


def search_all(
    photos: Sequence[P],
    parts: Parts,
    search: Callable[[P], Entries],
    refuse: Callable[[P, DataError], None],
    *,
    merged: Path,
    resume: bool,
) -> list[P]:
    """Search the photos, or with ``resume`` those that have no results yet, and join all results in ``merged``.

    ``refuse`` is told of each photo that cannot be searched, and may raise its error to stop. Returns the photos
    whose results are in ``merged``.
    """
    done = parts.finished(photos) if resume else [False] * len(photos)
    if resume:
        say(f"{sum(done)} of {len(photos)} photos have results in {parts.folder}", ERR)
    left = [photo for photo, there in zip(photos, done, strict=True) if not there]
    good = list(photos)
    for _ in range(ATTEMPTS):
        for photo in track(left, "Proposals", console=ERR, disable=len(left) <= 1):
            try:
                content = content_of(photo.path)
                entries = _search(photo, search)
            except DataError as error:
                refuse(photo, error)
                good.remove(photo)
            else:
                parts.write(photo, content, entries)
        there = parts.merge(good, merged)
        left = [photo for photo, found in zip(good, there, strict=True) if not found]
        if not left:
            return good
        say(f"{parts.folder}: the results of {len(left)} photos are gone, so these are searched again", ERR)
    for photo in left:
        refuse(photo, DataError(f"{parts.folder / photo.part}: gone each time after it was written"))
    return [photo for photo in good if photo not in left]


def _search(photo: P, search: Callable[[P], Entries]) -> Entries:
    """A photo's results. Raises ``DataError`` where the memory does not suffice."""
    try:
        return search(photo)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    raise DataError(f"{photo.path}: out of memory while it was searched; a smaller --max-side takes less")

"""The search of many photos: one that fails stops no other, and a stopped search goes on. PyTorch is not needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from rich.progress import Progress

from ..data.images import PLAIN_PIXELS, read_header
from ..errors import DataError, counted, is_out_of_memory
from .output import ERR, say
from .overlap import Steps, overlapped
from .parts import Content, Entries, Parts, Searched, content_of

P = TypeVar("P", bound=Searched)
R = TypeVar("R")

ATTEMPTS = 3
"""How often photos are searched whose results vanish while the command runs."""


def search_all(
    photos: Sequence[P],
    parts: Parts,
    steps: Steps[P, Entries],
    refuse: Callable[[P, DataError], None],
    *,
    merged: Path | None,
    resume: bool,
    quiet: bool = False,
) -> list[P]:
    """Search the photos, or with ``resume`` those that have no results yet, and join all results in ``merged``.

    Without ``merged`` they are not joined. ``quiet``: without a line of progress.
    ``refuse`` is told of each photo that cannot be searched, and may raise its error to stop. Returns the photos
    that have results.
    """
    done = parts.finished(photos) if resume else [False] * len(photos)
    if resume and not quiet:
        say(f"{sum(done)} of {counted(len(photos), 'photo has', 'photos have')} results in {parts.folder}", ERR)
    left = [photo for photo, there in zip(photos, done, strict=True) if not there]
    good = list(photos)
    for _ in range(ATTEMPTS):
        for photo in _search(left, parts, steps, refuse, quiet):
            good.remove(photo)
        there = parts.merge(good, merged)
        left = [photo for photo, found in zip(good, there, strict=True) if not found]
        if not left:
            return good
        gone = counted(len(left), "photo are gone, so it is", "photos are gone, so these are")
        say(f"{parts.folder}: the results of {gone} searched again", ERR)
    for photo in left:
        refuse(photo, DataError(f"{parts.folder / photo.part}: gone each time after it was written"))
    return [photo for photo in good if photo not in left]


def _search(
    photos: Sequence[P], parts: Parts, steps: Steps[P, Entries], refuse: Callable[[P, DataError], None], quiet: bool
) -> list[P]:
    """Search the photos and write the results of each. Returns those that cannot be searched."""
    refused = []

    def done(photo: P, outcome: Future[tuple[Content, Entries]]) -> None:
        try:
            content, entries = _result(photo, outcome)
        except DataError as error:
            refuse(photo, error)
            refused.append(photo)
        else:
            parts.write(photo, content, entries)
        progress.advance(task)

    with Progress(console=ERR, disable=quiet or len(photos) <= 1) as progress:
        task = progress.add_task("Proposals", total=len(photos))
        overlapped(photos, _with_content(steps), done)
    return refused


def _with_content(steps: Steps[P, Entries]) -> Steps[P, tuple[Content, Entries]]:
    """Steps that also tell what the photo's file held before it was read."""
    return Steps(
        lambda photo: (content_of(photo.path), steps.read(photo)),
        lambda photo, read: (read[0], steps.search(photo, read[1])),
        lambda photo, found: (found[0], steps.finish(photo, found[1])),
        steps.is_large,
        steps.at_once,
    )


def _result(photo: P, outcome: Future[R]) -> R:
    """A photo's results. Raises ``DataError`` where the memory does not suffice."""
    try:
        return outcome.result()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    raise DataError(f"{photo.path}: out of memory while it was searched; a smaller --max-side takes less")


def is_large(path: Path) -> bool:
    """Whether a photo may take so much memory that nothing should be done beside it."""
    try:
        header = read_header(path)
    except DataError:  # Told when it is its turn.
        return False
    return header.height * header.width > PLAIN_PIXELS

"""Ids of photos that depend on nothing but their own names."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

from ..places import place_of

HASHED: Final = 1 << 52
"""Ids in COCO below are numbers that photos have for names; those from here up are hashes. JSON keeps both exact."""
DIGITS: Final = 16
"""Hexadecimal digits of an id. Among ten million photos, two have the same with a probability of 3 in a million."""


def photo_id(path: str | Path, root: str | Path | None = None) -> str:
    """A hash of a photo's path or URL: of the part below ``root``, or of the whole where it is not below it.

    So it stays when other photos come or go, and with ``root`` when all of them move. Without ``root`` the path counts
    as it is written.
    """
    name = os.fspath(path)
    if root is not None:
        name = _below(name, os.fspath(root))
    return content_id(os.fsencode(name.replace(os.sep, "/")))


def content_id(content: bytes) -> str:
    """The id of a photo that has no name."""
    return hashlib.sha256(content).hexdigest()[:DIGITS]


def number_of(stem: str) -> int | None:
    """The number that is a file's name without its suffix, such as 123 of 000123."""
    number = int(stem) if stem.isascii() and stem.isdecimal() and len(stem) <= 20 else HASHED
    return number if number < HASHED else None


def _below(name: str, root: str) -> str:
    """The part of a path or URL below another one, or all of it."""
    return place_of(name).removeprefix(os.path.join(place_of(root), ""))

"""Files and folders, on this machine or at a URL of a store that fsspec knows, such as s3://bucket/photos."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from shutil import copyfileobj
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, cast

from .errors import DataError
from .packages import needed

PIECE = 1 << 22
"""Bytes that are copied at once."""
# Two letters at least: C:/ is a drive. A Path keeps one slash of two. Caches stand before it: simplecache::s3://.
_URL = re.compile(r"((?:[a-z][a-z0-9+.-]*::)*[a-z][a-z0-9+.-]+):/+(.*)", re.DOTALL | re.IGNORECASE)


def place_of(given: str | Path) -> str:
    """A URL, or an absolute path: what workers elsewhere can read, if they share the folder."""
    found = _URL.fullmatch(str(given))
    if found is None:
        return os.path.abspath(given)
    scheme, rest = found[1].lower(), found[2]
    if scheme == "file":
        return f"/{rest}"
    return f"{scheme}:///{rest}" if scheme.endswith("::file") else f"{scheme}://{rest}"


def is_url(place: str) -> bool:
    return _URL.match(place) is not None


def store_of(place: str) -> tuple[Any, str]:
    """The store of a place and the path there. Raises ``DataError`` where a package for it is not installed."""
    fsspec = needed("fsspec", f"{place} (a URL)", "ray")
    if not is_url(place):
        return fsspec.filesystem("file"), place
    try:
        store, path = fsspec.core.url_to_fs(place)
    except (ImportError, ValueError) as error:  # fsspec's text names the package, or the schemes that it knows
        raise DataError(f"{place}: cannot be read: {error}") from error
    return store, path


@contextmanager
def reaching(place: str) -> Iterator[None]:
    """Turn what a store raises in the block into an ``OSError``: its own errors have no class in common."""
    try:
        yield
    except (OSError, DataError):
        raise
    except Exception as error:
        raise OSError(f"{place}: {type(error).__name__}: {error}") from error


def files_below(place: str, depth: int | None = None) -> Iterator[tuple[str, PurePosixPath]]:
    """The URLs of the files in a folder of a store and in its subfolders, and their paths below it, sorted.

    ``depth``: 1 for those in the folder itself. None where there is no such folder.
    """
    store, root = store_of(place)
    for path in sorted(store.find(root, maxdepth=depth)):
        yield place_of(store.unstrip_protocol(path)), PurePosixPath(path.removeprefix(root).lstrip("/"))


def open_place(place: str) -> BinaryIO:
    """A file to read. Raises an ``OSError`` where it cannot be read."""
    if not is_url(place):
        return open(place, "rb")
    store, path = store_of(place)
    with reaching(place):
        return cast(BinaryIO, store.open(path, "rb"))


@contextmanager
def copied(place: str, start: int = 0) -> Iterator[Path]:
    """A copy of the file at a URL, from the byte ``start`` on, for as long as the block lasts.

    Raises an ``OSError`` where it cannot be read.
    """
    with TemporaryDirectory(prefix="sharpmask-") as folder:
        copy = Path(folder, "copy")
        with open_place(place) as file, reaching(place), copy.open("wb") as out:
            file.seek(start)
            copyfileobj(file, out, PIECE)
        yield copy


def content_of(place: str, offset: int = 0, size: int | None = None) -> bytes:
    """The bytes of a file, or ``size`` of them from ``offset`` on. Raises an ``OSError`` where it cannot be read."""
    if is_url(place):
        store, path = store_of(place)
        return bytes(store.cat_file(path, start=offset, end=None if size is None else offset + size))
    with open(place, "rb") as file:
        file.seek(offset)
        return file.read(-1 if size is None else size)

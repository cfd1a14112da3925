"""Files and folders, on this machine or at a URL of a store that fsspec knows, such as s3://bucket/photos."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from ..errors import DataError
from ..files import atomic, output_folder
from ..packages import needed

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


def open_place(place: str) -> BinaryIO:
    """A file to read. Raises an ``OSError`` where it cannot be read."""
    if not is_url(place):
        return open(place, "rb")
    store, path = store_of(place)
    with reaching(place):
        return cast(BinaryIO, store.open(path, "rb"))


def content_of(place: str, offset: int = 0, size: int | None = None) -> bytes:
    """The bytes of a file, or ``size`` of them from ``offset`` on. Raises an ``OSError`` where it cannot be read."""
    if is_url(place):
        store, path = store_of(place)
        return bytes(store.cat_file(path, start=offset, end=None if size is None else offset + size))
    with open(place, "rb") as file:
        file.seek(offset)
        return file.read(-1 if size is None else size)


class Folder:
    """A folder of results. A file in it is whole or not there."""

    def __init__(self, place: str) -> None:
        self.place = place.rstrip("/") or "/"
        found: tuple[Any, str] = store_of(self.place) if is_url(place) else (None, self.place)
        self._store, self._path = found

    def __str__(self) -> str:
        return self.place

    def inner(self, name: str) -> Folder:
        return Folder(f"{self.place}/{name}")

    def names(self) -> list[str]:
        """The names of what is in it, sorted; none if it is not there."""
        try:
            if self._store is None:
                return sorted(os.listdir(self._path))
            with reaching(self.place):
                self._store.invalidate_cache(self._path)  # another process may have written
                paths = self._store.ls(self._path, detail=False)
            return sorted(path.rstrip("/").rpartition("/")[2] for path in paths)
        except FileNotFoundError:
            return []

    def open(self, name: str) -> BinaryIO:
        """A file in it to read."""
        return open_place(f"{self.place}/{name}")

    def write(self, name: str, content: bytes) -> None:
        """Write a file: renamed when it is whole, or at a URL put there in one piece.

        Raises an ``OSError`` that names the file.
        """
        if self._store is not None:
            with reaching(f"{self.place}/{name}"):
                self._store.pipe_file(f"{self._path}/{name}", content)
            return
        with atomic(Path(self._path) / name) as part:
            part.write_bytes(content)

    def remove(self, name: str) -> None:
        if self._store is None:
            os.unlink(os.path.join(self._path, name))
        else:
            with reaching(f"{self.place}/{name}"):
                self._store.rm_file(f"{self._path}/{name}")

    @contextmanager
    def alone(self, *inner: str) -> Iterator[None]:
        """Keep other runs out for as long as the block lasts. At a URL nothing does; two runs write the same there.

        What killed runs left in it, and in its folders ``inner``, goes.
        """
        if self._store is not None:
            yield
            return
        with output_folder(Path(self._path), *inner):
            yield

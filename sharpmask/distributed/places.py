"""A folder of results, on this machine or at a URL."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ..files import atomic, output_folder
from ..places import is_url, open_place, reaching, store_of


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

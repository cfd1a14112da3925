"""Where the photos of a run come from: files, folders, lists, Parquet files of paths, and tar archives (WebDataset)."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from glob import has_magic
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ..batch import photo_id
from ..data.formats import photo_suffixes
from ..data.photos import Folder
from ..errors import DataError
from ..packages import needed
from ..places import files_below, is_url, open_place, place_of, reaching, store_of

LISTS = (".txt", ".lst")
ARCHIVES = (".tar",)
COMPRESSED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")


class Photo(NamedTuple):
    """A photo to search."""

    id: str
    """Its own, whatever else is in the run: of its name, or as given."""
    path: str
    """A path or URL. Of a photo in an archive: the archive's, and the name in it."""
    archive: str | None = None
    """The archive that it is in."""
    offset: int = 0
    """Where it begins there, in bytes."""
    size: int = 0
    """Its bytes there."""


def photos_of(given: Sequence[str | Path], *, recursive: bool = False, root: str | None = None) -> Iterator[Photo]:
    """The photos of files, folders, lists, tables and archives, as they are found.

    Ids are those of paths below ``root``, by default below the given folder, or the folder of a photo or an archive
    that is given. Raises ``DataError`` for a source that cannot be read.
    """
    for one in given:
        place = place_of(one)
        try:
            with reaching(place):
                yield from _photos(place, recursive, root)
        except OSError as error:
            raise DataError(f"{place}: cannot be read: {error.strerror or error}") from error


def _photos(place: str, recursive: bool, root: str | None) -> Iterator[Photo]:
    name = place.lower()
    if name.endswith(COMPRESSED):
        raise DataError(f"{place}: must be a plain .tar, because photos are read from the middle of it")
    if is_url(place) and has_magic(place):
        yield from _matches(place, recursive, root)
    elif name.endswith(".parquet"):
        yield from _of_table(place, root)
    elif name.endswith(LISTS):
        yield from _of_list(place, root)
    elif name.endswith(ARCHIVES):
        yield from _of_archive(place, root)
    elif PurePosixPath(name).suffix in photo_suffixes():
        yield Photo(photo_id(place, root or _folder(place)), place)
    else:
        yield from (_of_url if is_url(place) else _of_folder)(place, recursive, root)


def _of_folder(place: str, recursive: bool, root: str | None) -> Iterator[Photo]:
    if not os.path.isdir(place):
        raise DataError(f"{place}: must be a folder, a photo, {', '.join((*LISTS, '.parquet', *ARCHIVES))}")
    for photo in Folder(Path(place), recursive).photos():
        path = str(photo.path)
        yield Photo(photo_id(path, root or place), path)


def _of_url(place: str, recursive: bool, root: str | None) -> Iterator[Photo]:
    """The photos of a folder of a store."""
    for path, below in files_below(place, None if recursive else 1):
        if below.suffix.lower() in photo_suffixes() and not any(part.startswith(".") for part in below.parts):
            yield Photo(photo_id(str(below)) if root is None else photo_id(path, root), path)


def _matches(place: str, recursive: bool, root: str | None) -> Iterator[Photo]:
    store, pattern = store_of(place)
    found = sorted(store.glob(pattern))
    if not found:
        raise DataError(f"images: no file or folder matches {place}")
    for path in found:
        yield from _photos(store.unstrip_protocol(path), recursive, root)


def _of_list(place: str, root: str | None) -> Iterator[Photo]:
    """The photos whose paths a text file has, one a line; relative ones are below its folder."""
    with open_place(place) as file:
        for line in file:
            if path := os.fsdecode(line.rstrip(b"\r\n")):
                yield _named(place, path, root)


def _of_table(place: str, root: str | None) -> Iterator[Photo]:
    """The photos of a Parquet file with a column ``path``, and ``id`` for keys of the user's."""
    parquet = needed("pyarrow.parquet", place, "ray")
    with open_place(place) as file:
        try:
            table = parquet.ParquetFile(file)
        except ValueError as error:  # pyarrow.ArrowInvalid
            raise DataError(f"{place}: must be a Parquet file: {error}") from error
        columns = [name for name in ("path", "id") if name in table.schema_arrow.names]
        if "path" not in columns:
            raise DataError(f"{place}: must have a column path, got {', '.join(table.schema_arrow.names)}")
        for batch in table.iter_batches(columns=columns):
            for row in batch.to_pylist():
                path, id = row["path"], row.get("id")
                if not isinstance(path, str):
                    raise DataError(f"{place}: path must be a text, got {path!r}")
                photo = _named(place, path, root)
                yield photo if id is None else photo._replace(id=str(id))


def _of_archive(place: str, root: str | None) -> Iterator[Photo]:
    """The photos in a tar archive, such as the shards of a WebDataset, by where they lie in it."""
    with open_place(place) as file, tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            if member.isfile() and PurePosixPath(member.name).suffix.lower() in photo_suffixes():
                path = f"{place}/{member.name}"
                id = photo_id(path, root or _folder(place))
                yield Photo(id, path, place, member.offset_data, member.size)
            archive.members.clear()  # type: ignore[attr-defined]  # or all headers stay in memory


def _named(place: str, path: str, root: str | None) -> Photo:
    """A photo whose path stands in the file ``place``. Without ``root`` its id is that of what stands there."""
    found = place_of(path) if is_url(path) or os.path.isabs(path) else os.path.join(_folder(place), path)
    return Photo(photo_id(path) if root is None else photo_id(found, root), found)


def _folder(place: str) -> str:
    """The folder of a file."""
    return place.rpartition("/")[0] or "/"

"""The photos of a run: found once, written as a table, and divided into parts that never change.

A part is the photos whose rows stand in one file. So a file that is there says that its photos are done, whoever
writes it again writes the same photos, and photos that are added later get parts of their own.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from ..errors import DataError
from ..packages import needed
from .places import Folder
from .sources import Photo

_NAME = re.compile(r"manifest-(\d{4,})\.parquet")
_AT_ONCE = 10_000  # rows in memory


class Part(NamedTuple):
    """The photos whose rows stand in one file."""

    name: str
    """The name of the file, such as part-0000-000012.parquet."""
    photos: list[Photo]


class Manifest:
    """The tables of a folder of results that say which photos are searched."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        return sorted(filter(_NAME.fullmatch, self.folder.names()), key=_number)

    def add(self, photos: Iterable[Photo], rows_per_file: int) -> int:
        """Add the photos that are not there yet as parts of ``rows_per_file``. Returns their number.

        Raises ``DataError`` where two photos have one id, or one has two.
        """
        names, ids = self.names(), Ids()
        for part in self.parts():
            for photo in part.photos:
                ids.add(photo)
        number = _number(names[-1]) + 1 if names else 0
        content, count = _written(filter(ids.add, photos), rows_per_file)
        if count:
            self.folder.write(f"manifest-{number:04d}.parquet", content)
        return count

    def parts(self) -> Iterator[Part]:
        """All parts, in the order in which photos came; one is in memory at a time."""
        for name in self.names():
            number, photos = 0, list[Photo]()
            for row in self._rows(name):
                if row.pop("part") != number:
                    yield Part(_part_name(name, number), photos)
                    number, photos = number + 1, []
                photos.append(_photo(**row))
            yield Part(_part_name(name, number), photos)

    def __len__(self) -> int:
        parquet = needed("pyarrow.parquet", "a manifest", "ray")
        count = 0
        for name in self.names():
            with self.folder.open(name) as file:
                count += parquet.ParquetFile(file).metadata.num_rows
        return count

    def _rows(self, name: str) -> Iterator[dict[str, Any]]:
        with self.folder.open(name) as file:
            parquet = needed("pyarrow.parquet", "a manifest", "ray").ParquetFile(file)
            for batch in parquet.iter_batches(batch_size=_AT_ONCE):
                yield from batch.to_pylist()


class Ids:
    """Which photo has which id: one each. A hash stands for a photo's place, so a million take some 200 MB."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        self._taken: set[int] = set()

    def add(self, photo: Photo) -> bool:
        """Whether the photo is new. Raises ``DataError`` where another one has its id, or it has another id."""
        place = hash((photo.path, photo.offset))
        known = self._places.get(photo.id)
        if known == place:
            return False
        if known is not None:
            raise DataError(
                f"photos must have an id each, got {photo.id!r} for {photo.path} and another one; give a --root above "
                "all folders, or a Parquet file with the columns path and id; or another --out, if the photo has moved"
            )
        if place in self._taken:
            raise DataError(
                f"{photo.path} must have one id in a run, got {photo.id!r} and another one; give it once, "
                "below the folder or --root that the run began with, or give another --out, or --restart to begin again"
            )
        self._places[photo.id] = place
        self._taken.add(place)
        return True


def _number(manifest: str) -> int:
    return int(manifest.removeprefix("manifest-").removesuffix(".parquet"))


def _part_name(manifest: str, number: int) -> str:
    return f"part-{_number(manifest):04d}-{number:06d}.parquet"


def _row(photo: Photo) -> dict[str, Any]:
    archive = None if photo.archive is None else os.fsencode(photo.archive)
    return photo._asdict() | {"path": os.fsencode(photo.path), "archive": archive}


def _photo(id: str, path: bytes, archive: bytes | None, offset: int, size: int) -> Photo:
    return Photo(id, os.fsdecode(path), None if archive is None else os.fsdecode(archive), offset, size)


def _written(photos: Iterable[Photo], rows_per_file: int) -> tuple[bytes, int]:
    """The content of a manifest and the number of its photos."""
    arrow, parquet = (needed(name, "a manifest", "ray") for name in ("pyarrow", "pyarrow.parquet"))
    # Names of files may have bytes that are no text.
    text, name, number = arrow.string(), arrow.binary(), arrow.int64()
    schema = arrow.schema(
        {"id": text, "path": name, "archive": name, "offset": number, "size": number, "part": arrow.int32()}
    )
    sink = io.BytesIO()
    count, rows = 0, list[dict[str, Any]]()
    with parquet.ParquetWriter(sink, schema, compression="zstd") as writer:
        for photo in photos:
            rows.append(_row(photo) | {"part": count // rows_per_file})
            count += 1
            if len(rows) == _AT_ONCE:
                writer.write_table(arrow.Table.from_pylist(rows, schema))
                rows.clear()
        writer.write_table(arrow.Table.from_pylist(rows, schema))
    return sink.getvalue(), count

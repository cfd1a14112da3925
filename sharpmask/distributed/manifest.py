"""The photos of a run: found once, written as a table, and divided into parts that never change.

A part is the photos whose rows stand in one file. So a file that is there says that its photos are done, whoever
writes it again writes the same photos, and photos that are added later get parts of their own.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
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
        """Add the photos that are not there yet, by id, as parts of ``rows_per_file``. Returns their number.

        Raises ``DataError`` where two photos have one id.
        """
        names = self.names()
        known = {id for name in names for id in self._column(name, "id")}
        number = _number(names[-1]) + 1 if names else 0
        content, count = _written(_new(photos, known), rows_per_file)
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
        for batch in self._batches(name, None):
            yield from batch.to_pylist()

    def _column(self, name: str, column: str) -> Iterator[Any]:
        for batch in self._batches(name, [column]):
            yield from batch.column(0).to_pylist()

    def _batches(self, name: str, columns: Sequence[str] | None) -> Iterator[Any]:
        with self.folder.open(name) as file:
            parquet = needed("pyarrow.parquet", "a manifest", "ray").ParquetFile(file)
            yield from parquet.iter_batches(batch_size=_AT_ONCE, columns=columns)


def _number(manifest: str) -> int:
    return int(manifest.removeprefix("manifest-").removesuffix(".parquet"))


def _part_name(manifest: str, number: int) -> str:
    return f"part-{_number(manifest):04d}-{number:06d}.parquet"


def _row(photo: Photo) -> dict[str, Any]:
    archive = None if photo.archive is None else os.fsencode(photo.archive)
    return photo._asdict() | {"path": os.fsencode(photo.path), "archive": archive}


def _photo(id: str, path: bytes, archive: bytes | None, offset: int, size: int) -> Photo:
    return Photo(id, os.fsdecode(path), None if archive is None else os.fsdecode(archive), offset, size)


def _new(photos: Iterable[Photo], known: set[str]) -> Iterator[Photo]:
    """The photos whose ids are not ``known``. Raises ``DataError`` where two of them have one id."""
    new: set[str] = set()
    for photo in photos:
        if photo.id in known:
            continue
        if photo.id in new:
            raise DataError(
                f"photos must have an id each, got {photo.id!r} a second time for {photo.path}; "
                "a Parquet file with the columns path and id gives them ids"
            )
        new.add(photo.id)
        yield photo


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

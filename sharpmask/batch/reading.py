"""Files of rows, read in bounded memory: they may come from anybody."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path, PurePath
from typing import Any, Final

from ..errors import DataError, counted
from ..packages import needed
from ..places import copied, files_below, is_url, open_place, place_of, reaching, store_of
from ..ranges import shown
from .footers import columns_of
from .rows import RECORD_KEY, VERSION, VERSION_KEY, arrow, schema

ROWS: Final = 256
"""Most rows in memory at once."""
MOST_FOOTER: Final = 1 << 28
"""Most bytes of a footer that are fetched from a URL."""
MOST_VALUES: Final = 1 << 26
"""Most values of a column in a row group, whose longest row is decoded as a whole."""
MOST_TEXT: Final = 1 << 28
"""Most bytes of texts in the rows that are in memory."""
SMALL: Final = 1 << 26
"""A column of a row group that has more bytes must take a byte of the file for each ``BYTES_PER_BYTE`` of them."""
BYTES_PER_BYTE: Final = 1000


def files_of(paths: Sequence[str | Path]) -> list[str | Path]:
    """The files among the paths and URLs, and the Parquet files in the folders among them, sorted by name, none twice.

    Names in a folder that begin with a point or _ are passed over, as other programs do: files that are being written,
    and what is no row. Raises ``DataError`` where there is none.
    """
    if not paths:
        raise DataError("rows must be Parquet files, folders of these, or URLs, got none")
    found: dict[str | Path, None] = {}
    for path in paths:
        place = place_of(path) if is_url(str(path)) else str(path)
        inside = _in_store(place) if is_url(place) else _in_folder(Path(place))
        if not inside:
            raise DataError(f"{path}: must hold Parquet files of rows, got none")
        found |= dict.fromkeys(inside)
    return list(found)


def folder_with(file: Path, paths: Sequence[str | Path]) -> str | Path | None:
    """The folder among the paths in which :func:`files_of` would find a file of that path; None if there is none."""
    place = file.parent.resolve() / file.name
    for path in paths:
        folder = Path(place_of(path) if is_url(str(path)) else path)
        if folder.is_dir() and place.is_relative_to(folder.resolve()) and _counts(place.relative_to(folder.resolve())):
            return path
    return None


def _in_folder(path: Path) -> Sequence[str | Path]:
    """The file, or those in the folder."""
    if not path.exists():
        raise DataError(f"rows: no file or folder {path}")
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.rglob("*.parquet") if file.is_file() and _counts(file.relative_to(path)))


def _in_store(place: str) -> Sequence[str | Path]:
    """The file at a URL, or those in the folder there."""
    with _told(place), reaching(place):
        store, path = store_of(place)
        return [place] if store.isfile(path) else [url for url, below in files_below(place) if _counts(below)]


def _counts(below: PurePath) -> bool:
    """Whether a file with this path in a folder is one of rows."""
    return below.suffix == ".parquet" and not any(part.startswith((".", "_")) for part in below.parts)


class RowsFile:
    """A Parquet file of rows, or a URL of one, which is copied to a temporary file while it is read.

    Raises ``DataError`` for what is none, and where a small file would take much memory.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        if not is_url(str(path)) and not os.path.isfile(path):
            raise DataError(f"{path}: must be a regular file")
        with _told(path), self._here(footer=True) as file:
            self._metadata = _parquet().read_metadata(file)
            given = self._metadata.schema.to_arrow_schema()
            self._check_columns(given.names)
            self._columns = columns_of(file, path)
            self._check_sizes()
            self.records = self._records(given.metadata or {})
        """The settings by their fingerprint, as far as the file has them."""

    def batches(self) -> Iterator[Any]:
        """The rows in their order, as batches of at most ``ROWS`` with the types of the schema."""
        pa, types = arrow(), schema()
        for batch in self._read(types.names):
            with _told(self.path):
                columns = [batch.column(field.name).cast(field.type) for field in types]
                yield pa.RecordBatch.from_arrays(columns, schema=types)

    def names(self) -> Iterator[tuple[list[Any], ...]]:
        """Ids, paths, errors, fingerprints and numbers of proposals, in the same batches; masks are not read."""
        score = next(path for path in self._paths() if path.startswith("proposals.") and path.endswith(".score"))
        columns = ["id", "path", "error", "fingerprint"]
        for batch in self._read([*columns, score]):
            if batch.column("id").null_count:
                raise DataError(f"{self.path}: every row must have an id, got one without")
            counts = needed("pyarrow.compute", "results", "batch").list_value_length(batch.column("proposals"))
            with _told(self.path):
                texts = [batch.column(name).cast(schema().field(name).type).to_pylist() for name in columns]
            yield (*texts, counts.fill_null(0).to_pylist())

    def _here(self, *, footer: bool = False) -> AbstractContextManager[Path]:
        """The file on this machine: itself, or a copy, or of its ``footer`` alone, for as long as the block lasts."""
        place = str(self.path)
        if not is_url(place):
            return nullcontext(Path(place))
        return copied(place, _footer_start(place) if footer else 0)

    def _read(self, columns: list[str]) -> Iterator[Any]:
        with ExitStack() as stack:
            with _told(self.path):
                here = stack.enter_context(self._here())
            yield from self._batches(here, columns)

    def _batches(self, here: Path, columns: list[str]) -> Iterator[Any]:
        # A text that stands once in the file for many rows does so in memory too.
        with _told(self.path):
            dictionaries = list({column.path: None for column in self._columns if column.dictionary})
            file = _parquet().ParquetFile(
                here, metadata=self._metadata, buffer_size=1 << 20, pre_buffer=False, read_dictionary=dictionaries
            )
            batches = file.iter_batches(ROWS, columns=columns)
        while True:
            with _told(self.path):
                batch = next(batches, None)
                if batch is None:
                    return
                batch.validate(full=True)
                text = sum(map(_text_bytes, batch.columns))
            if text > MOST_TEXT:
                raise DataError(
                    f"{self.path}: {counted(len(batch), 'row')} must have at most {MOST_TEXT} bytes of text, got {text}"
                )
            yield batch

    def _paths(self) -> list[str]:
        """The columns, and the parts of columns, that are stored."""
        stored = self._metadata.schema
        return [stored.column(i).path for i in range(len(stored))]

    def _check_columns(self, given: list[str]) -> None:
        missing = [name for name in schema().names if name not in given]
        parts = {path.rpartition(".")[2] for path in self._paths() if path.startswith("proposals.")}
        missing += [f"proposals.{name}" for name in ("score", "area", "counts") if name not in parts and not missing]
        if missing:
            raise DataError(
                f"{self.path}: must be rows of proposals (docs/results.md), but has no {', '.join(missing)}"
            )

    def _check_sizes(self) -> None:
        for name, values, size, compressed, _ in self._columns:
            if values > MOST_VALUES:
                raise DataError(
                    f"{self.path}: a row group must have at most {MOST_VALUES} values of {name}, "
                    f"got {values}; write smaller ones"
                )
            if size > max(SMALL, BYTES_PER_BYTE * compressed):
                least = -(-size // BYTES_PER_BYTE)
                raise DataError(
                    f"{self.path}: {size} bytes of {name} in a row group must take {least} bytes of the file, as masks "
                    f"do, got {compressed}; write smaller row groups"
                )

    def _records(self, metadata: dict[bytes, bytes]) -> dict[str, dict[str, Any]]:
        version = metadata.get(VERSION_KEY, VERSION.encode())
        if version != VERSION.encode():
            raise DataError(
                f"{self.path}: must be rows of version {VERSION}, got {shown(version.decode(errors='replace'))}"
            )
        try:
            records = json.loads(metadata.get(RECORD_KEY, b"{}"))
        except (ValueError, RecursionError):
            records = None
        if not isinstance(records, dict) or not all(isinstance(record, dict) for record in records.values()):
            raise DataError(f"{self.path}: the settings in its metadata must be JSON by fingerprint, got others")
        return records


def _footer_start(url: str) -> int:
    """The byte of a Parquet file at which its footer begins, as its end says."""
    with open_place(url) as file, reaching(url):
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 8))
        return max(0, size - 8 - min(MOST_FOOTER, int.from_bytes(file.read(4), "little")))


def _parquet() -> Any:
    return needed("pyarrow.parquet", "results", "batch")


def _text_bytes(column: Any) -> int:
    """The bytes of the texts in a column, each as often as it stands there."""
    pa, compute = arrow(), needed("pyarrow.compute", "results", "batch")
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        column = column.flatten()
    if pa.types.is_struct(column.type):
        return sum(map(_text_bytes, column.flatten()))
    if pa.types.is_dictionary(column.type):
        lengths = compute.binary_length(column.dictionary)
        return compute.sum(compute.take(lengths, column.indices)).as_py() or 0
    return int(column.nbytes)


@contextmanager
def _told(path: str | Path) -> Iterator[None]:
    """What pyarrow raises on damaged files becomes a ``DataError``."""
    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError, TypeError, KeyError, MemoryError, NotImplementedError) as error:  # all that Arrow has
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(f"{path}: cannot be read as rows: {' '.join(text.split())[:300]}") from error

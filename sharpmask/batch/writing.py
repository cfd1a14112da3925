"""The loop of one machine: photos in, files of rows out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from ..files import atomic
from ..packages import needed
from .propose import Propose
from .rows import PARQUET, arrow

Photo = str | Path | Mapping[str, Any]
"""A path or URL, or what a batch has of one photo, by column: ``path`` or ``bytes``, and perhaps ``id``."""


def rows(photos: Iterable[Photo], propose: Propose) -> Iterator[Any]:
    """A ``pyarrow.Table`` of one row for each photo, as ``propose`` gives it."""
    for photo in photos:
        columns = photo if isinstance(photo, Mapping) else {"path": photo}
        yield propose({name: [value] for name, value in columns.items()})


def write_rows(photos: Iterable[Photo], propose: Propose, out: str | Path, *, rows_per_file: int = 200) -> list[Path]:
    """Write the photos' rows into the folder ``out``, as files ``rows-000000.parquet`` and so on. Returns their paths.

    A file appears when it is whole, and replaces one of its name; other files stay, so a run takes a folder of its own.
    Raises ``DataError`` as ``propose`` does, and an ``OSError`` that names the file.
    """
    left = rows(photos, propose)
    paths: list[Path] = []
    while tables := list(islice(left, rows_per_file)):
        paths.append(Path(out) / f"rows-{len(paths):06d}.parquet")
        write_table(arrow().concat_tables(tables), paths[-1])
    return paths


def write_table(table: Any, path: Path) -> None:
    """Write rows to a file, which appears when it is whole. Raises an ``OSError`` that names it."""
    with atomic(path) as part:
        needed("pyarrow.parquet", "a table of rows", "batch").write_table(table, part, **PARQUET)

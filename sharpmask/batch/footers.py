"""What the footer of a Parquet file says of its columns, read in a process of its own.

A damaged footer can end the process in which pyarrow looks at its columns (26.0: an exception of C++ that nothing
catches). Files of rows may come from anybody, so the process that looks is one that may end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DataError


class Column(NamedTuple):
    """A column of a row group."""

    path: str
    values: int
    uncompressed: int
    """Bytes."""
    compressed: int
    """Bytes in the file."""
    dictionary: bool
    """Whether texts may stand once for many rows."""


def columns_of(path: Path, name: str | Path) -> list[Column]:
    """The columns of all row groups of a file. Raises ``DataError`` with its ``name`` if its footer cannot be read."""
    with _lock:
        reader = _reader()
        answer = ""
        try:
            reader.stdin.write(json.dumps(os.fspath(path.absolute())) + "\n")
            reader.stdin.flush()
            answer = reader.stdout.readline()
        except BrokenPipeError:
            pass
        if not answer:
            reader.kill()
            reader.wait()
            _reader.cache_clear()
            raise DataError(f"{name}: cannot be read as rows: its footer is damaged")
    found = json.loads(answer)
    if isinstance(found, str):
        raise DataError(f"{name}: cannot be read as rows: {found}")
    return [Column(*column) for column in found]


_lock = threading.Lock()


@cache
def _reader() -> Any:
    """The process that answers a line with a path by a line with its columns. It ends with this process's pipe."""
    return subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import _answer; _answer()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # It finds what this process finds.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def _answer() -> None:
    import pyarrow.parquet as parquet

    for line in sys.stdin:
        try:
            metadata = parquet.read_metadata(json.loads(line))
            groups = map(metadata.row_group, range(metadata.num_row_groups))
            answer: Any = [_seen(group.column(i)) for group in groups for i in range(metadata.num_columns)]
        except Exception as error:  # as pyarrow's have no class in common
            answer = " ".join(str(error).split())[:200]
        print(json.dumps(answer), flush=True)


def _seen(column: Any) -> Column:
    dictionary = any("DICTIONARY" in encoding for encoding in column.encodings)
    sizes = column.num_values, column.total_uncompressed_size, column.total_compressed_size
    return Column(column.path_in_schema, *sizes, dictionary)

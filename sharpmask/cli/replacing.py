"""Which files a command replaces: those of the kind that it writes, and others where that is asked for."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple, TypeAlias

from tyro.conf import arg

from ..batch.rows import VERSION_KEY
from ..errors import DataError
from ..fingerprint import search_of

FileKind: TypeAlias = Literal["checkpoint", "instances", "results", "rows"]
Overwrite: TypeAlias = Annotated[bool, arg(help="Replace a file of another kind, too, which else is an error.")]
MOST_FOOTER: Final = 1 << 24
"""Most bytes of a Parquet file's footer that are looked through."""
INSTANCES: Final = re.compile(rb'\{("info": \{"complete": false\}, )?"images": \[')
"""How ``convert-dataset`` begins a file."""
RESULTS: Final = re.compile(rb'\[\s*(\{\s*"image_id"|\]\s*$)')
"""How COCO results begin."""


class Kind(NamedTuple):
    """A kind of files that a command writes."""

    name: str
    is_one: Callable[[Path], bool]
    """Whether a file is one, as far as its beginning or its end tells."""


def check_replaced(path: Path, kind: FileKind, overwrite: bool) -> None:
    """Raise ``DataError`` if a file of another kind is at ``path``, unless ``overwrite``. An empty file may go."""
    if path.exists() and not path.is_file():
        raise DataError(f"out: {path} must be a regular file, got another")
    if overwrite or not path.exists() or path.stat().st_size == 0:
        return
    name, is_one = KINDS[kind]
    if not is_one(path):
        raise DataError(f"out: {path} is there already and is not {name}; give another file, or --overwrite")


def is_checkpoint(path: Path) -> bool:
    try:
        search_of(path.absolute())
    except DataError:
        return False
    return True


def is_rows(path: Path) -> bool:
    """Whether the footer of a Parquet file has the key of rows."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 8))
        end = file.read(8)
        if end[4:] != b"PAR1":
            return False
        file.seek(-min(os.path.getsize(path), 8 + min(MOST_FOOTER, int.from_bytes(end[:4], "little"))), os.SEEK_END)
        return VERSION_KEY in file.read(MOST_FOOTER)


def begins(pattern: re.Pattern[bytes]) -> Callable[[Path], bool]:
    """Whether a file begins as ``pattern`` says."""

    def is_one(path: Path) -> bool:
        with open(path, "rb") as file:
            return pattern.match(file.read(100)) is not None

    return is_one


KINDS: Final[dict[FileKind, Kind]] = {
    "checkpoint": Kind("a checkpoint of this package", is_checkpoint),
    "instances": Kind("a COCO instances file that convert-dataset wrote", begins(INSTANCES)),
    "results": Kind("a file of COCO results", begins(RESULTS)),
    "rows": Kind("a file of rows", is_rows),
}

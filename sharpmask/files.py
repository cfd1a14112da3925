"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Where to write what becomes ``path`` when the block ends well; its folder is made.

    A reader sees the old file or the whole new one, also if the program dies meanwhile.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, pieces: str | Iterable[str]) -> None:
    """Write a text file, whole or in pieces, atomically."""
    with atomic(path) as part, open(part, "w", encoding="utf-8") as file:
        file.writelines([pieces] if isinstance(pieces, str) else pieces)

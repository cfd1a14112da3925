"""Writing files so that a reader never sees an incomplete one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path to write to, which becomes ``path`` if the block ends without an error.

    A reader sees the old file or the whole new one, even if the program dies in between. The folder is created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, pieces: str | Iterable[str]) -> None:
    """Write a text, or its pieces one after the other, to a file; see :func:`atomic`."""
    with atomic(path) as part, open(part, "w", encoding="utf-8") as file:
        file.writelines([pieces] if isinstance(pieces, str) else pieces)

"""The paths that are given: in arguments, by patterns, or on stdin."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path

from ..errors import DataError


def expanded(paths: Sequence[Path]) -> list[Path]:
    """``paths``, with the lines of stdin in place of ``-``, and with its matches in place of a pattern.

    A path that is there is no pattern, whatever characters it has. Raises ``DataError`` where nothing is found.
    """
    found: list[Path] = []
    for path in paths:
        if path == Path("-"):
            found += from_stdin()
        elif has_magic(str(path)) and not os.path.lexists(path):
            matches = sorted(glob(str(path), recursive=True))
            if not matches:
                raise DataError(f"images: no file or folder matches {path}")
            found += map(Path, matches)
        else:
            found.append(path)
    return found


def from_stdin() -> list[Path]:
    """The paths on stdin, one a line."""
    lines = [os.fsdecode(line.removesuffix(b"\r")) for line in sys.stdin.buffer.read().split(b"\n") if line.strip()]
    if not lines:
        raise DataError("images: - must be given paths on stdin, one a line, got none")
    return list(map(Path, lines))

"""What the commands print: on any terminal, into any file, and into a pipe that is closed early."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from rich.console import Console
from rich.table import Table

from ..errors import is_out_of_memory

OUT = Console()
ERR = Console(stderr=True)


def say(text: str, console: Console = OUT) -> None:
    """Print a line of text as it is, because a file's name may look like markup and a path may be long."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def show(table: Table, least: int | None = None) -> None:
    """Print a table whole, in lines of at least ``least`` characters, or without it so many that no cell is wrapped.

    They may be longer than those of the terminal, and than those that are taken for a file.
    """
    wide = OUT.options.update(width=10_000, max_width=10_000)
    Console(width=max(OUT.width, least or OUT.measure(table, options=wide).maximum)).print(table)


def tell_error(error: BaseException | str) -> None:
    """Print the one line that the user sees of an error."""
    if isinstance(error, OSError) and error.strerror:
        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else error.filename
        text = error.strerror if name is None else f"{name}: {error.strerror}"
    elif isinstance(error, BaseException) and is_out_of_memory(error):
        text = f"out of memory: {error}".removesuffix(": ")
    else:
        text = str(error)
    print("sharpmask:", *text.split(), file=sys.stderr)


@contextmanager
def steady_output(failures: list[OSError]) -> Iterator[None]:
    """Inside the block, nothing that happens to stdout and stderr raises an error, and so ends a command's work.

    What cannot be written is dropped, and its error added to ``failures``, unless a reader has only closed its pipe.
    Characters that the encoding lacks are printed as escapes, such as \\xe9.
    """
    old = sys.stdout, sys.stderr
    streams = [None if stream is None else _Steady(stream, failures) for stream in old]
    sys.stdout, sys.stderr = cast(list[TextIO], streams)
    try:
        yield
    finally:
        for stream in filter(None, streams):
            stream.flush()
        sys.stdout, sys.stderr = old


class _Steady:
    """A text stream whose errors are noted instead of raised."""

    def __init__(self, stream: TextIO, failures: list[OSError]) -> None:
        self._stream, self._failures = stream, failures
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        with self._noting():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._noting():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not isinstance(error, BrokenPipeError):
                self._failures.append(error)
            # What the stream still holds, and all that follows, goes nowhere.
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)

"""Command-line arguments as settings, with one line for a value that the settings refuse."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from typing import Any, TypeVar

import tyro

from ..errors import DataError

T = TypeVar("T")


def parse_arguments(cls: type[T], argv: list[str], **options: Any) -> T:
    """The settings ``cls`` from arguments, by ``tyro.cli`` with its ``options``.

    Prints help and usage errors and exits, as command lines do. Raises the ``DataError`` of a value that the
    settings refuse, which tyro alone would print in a box.
    """
    with redirect_stderr(io.StringIO()):
        try:
            return tyro.cli(cls, args=argv, **options)
        except SystemExit as ended:
            if not ended.code:
                raise
            cause: BaseException | None = ended
            while cause is not None and not isinstance(cause, DataError):
                cause = cause.__context__
    if cause is not None:
        raise cause.with_traceback(None) from None
    return tyro.cli(cls, args=argv, **options)

"""Memory that the C library keeps after it was freed."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


@cache
def _trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # not the GNU C library
        return None


def release_freed() -> None:
    """Give freed memory back to the system, where the C library can; larger maps would not fit into its pieces."""
    trim = _trim()
    if trim is not None:
        trim(0)

"""Memory that photos use in turn."""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""What malloc.h calls M_TRIM_THRESHOLD and M_MMAP_THRESHOLD."""


def keep_memory() -> None:
    """Let the process keep memory that it frees, up to a GiB, for the next photo.

    By default glibc gives large blocks back at once, and the kernel fills each page with zeros when it is used again:
    90,000 pages, a tenth of the time, for 1000 windows of a photo of 480 x 640 pixels. Other C libraries stay as they
    are.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(MMAP_THRESHOLD, 1 << 27)
            mallopt(TRIM_THRESHOLD, 1 << 30)

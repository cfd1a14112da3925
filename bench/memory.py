"""How much memory the ops take beyond what they are given and what they give."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class _Mallinfo2(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")),
        *((name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")),
    ]


def heap() -> int:
    """Bytes that are allocated now. Raises ``RuntimeError`` without glibc 2.33 or later."""
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        raise RuntimeError("only glibc 2.33 and later tell how much is allocated") from None
    mallinfo2.restype = _Mallinfo2
    info = mallinfo2()
    return int(info.uordblks + info.hblkhd)  # in arenas, and in mappings of their own


def extra(run: Callable[[], Any]) -> int:
    """The most bytes allocated at a time during ``run``, of those seen by looking every millisecond.

    ``run`` must give Python's lock away while it computes, as the kernels do, or nothing is seen.
    """
    peak = 0
    done = threading.Event()

    def look() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, heap())

    looking = threading.Thread(target=look)
    looking.start()
    before = heap()
    try:
        run()
    finally:
        done.set()
        looking.join()
    return peak - before


def saved(run: Callable[[], Any], given: Iterable[Tensor]) -> int:
    """Bytes kept for the backward pass of what ``run`` returns, each once, without the tensors ``given``."""
    storages: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        result = run()
    for x in given:
        storages.pop(x.untyped_storage().data_ptr(), None)
    del result  # held so long, or its memory might have been used again
    return sum(storages.values())

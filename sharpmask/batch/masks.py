"""The check of many compressed RLE masks at once: one at a time would take as long as finding them."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..data.annotations import decode_counts, decode_digits

PIECE: Final = 1 << 16
"""Most characters that are decoded at once, so that they stay in cache; a longer mask is decoded by itself."""
Numbers = NDArray[np.int64]


class BadMask(ValueError):
    """A mask is no RLE of its photo."""

    def __init__(self, index: int, why: str) -> None:
        super().__init__(why)
        self.index = index


def areas(counts: Any, pixels: Numbers) -> Numbers:
    """The number of pixels of each mask, (N), of a ``pyarrow.StringArray`` of RLE counts (N).

    ``pixels``: of each mask's photo, (N). Raises ``BadMask`` that names the first mask that is not an RLE of so many.
    """
    _, offsets, data = counts.buffers()
    text = np.frombuffer(data or b"", dtype=np.uint8)
    ends = np.frombuffer(offsets, dtype=np.int32)[counts.offset : counts.offset + len(counts) + 1].astype(np.int64)
    found = np.zeros(len(counts), dtype=np.int64)
    start = 0
    while start < len(counts):
        stop = max(start + 1, int(np.searchsorted(ends, ends[start] + PIECE, side="right")) - 1)
        inside = slice(start, stop)
        piece = text[ends[start] : ends[stop]]
        several = None if piece.size > PIECE else _decoded(piece, ends[start : stop + 1] - ends[start], pixels[inside])
        found[inside] = _one_by_one(counts, pixels, start, stop) if several is None else several
        start = stop
    return found


def _one_by_one(counts: Any, pixels: Numbers, start: int, stop: int) -> list[int]:
    found = []
    for index in range(start, stop):
        try:
            runs = decode_counts(counts[index].as_py().encode(), int(pixels[index]))
        except ValueError as error:
            raise BadMask(index, str(error)) from None
        if (runs < 0).any() or runs.sum() != pixels[index]:
            raise BadMask(index, f"RLE runs must be >= 0 and {pixels[index]} in all, got {runs.sum()}")
        found.append(int(runs[1::2].sum()))
    return found


def _decoded(text: NDArray[np.uint8], ends: Numbers, pixels: Numbers) -> Numbers | None:
    """The areas of several masks, whose counts stand one after another; None if one of them is broken."""
    digits = text - np.uint8(48)
    if (np.diff(ends) == 0).any() or digits.max() > 63 or (digits[ends[1:] - 1] > 31).any():
        return None
    try:
        runs = decode_digits(digits)
    except ValueError:
        return None
    first = np.searchsorted(np.flatnonzero(digits < 32), ends[:-1])  # each mask's first number
    mask = np.repeat(np.arange(len(first)), np.diff(first, append=len(runs)))
    place = np.arange(len(runs)) - first[mask]
    # From a mask's fourth number on, each is the difference to the run two before it.
    for chosen in (place % 2 == 1, (place % 2 == 0) & (place > 0)):
        sums, owner = np.cumsum(runs[chosen]), mask[chosen]
        before = np.concatenate([[0], sums])[np.searchsorted(owner, np.arange(len(first)))]
        runs[chosen] = sums - before[owner]
    good = (runs >= 0).all() and (runs <= pixels[mask]).all() and (np.add.reduceat(runs, first) == pixels).all()
    return np.add.reduceat(runs * (place % 2), first) if good else None

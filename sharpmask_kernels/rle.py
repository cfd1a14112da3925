"""COCO run-length encoding of a mask that fills only a part of its image.

A mask is read column by column; its runs of zeros and ones alternate, zeros first. COCO stores run i as the
difference to run i - 2, in groups of five bits, the lowest first, bit 5 telling that more follow, each group
as one character from 48 ("0") on. Nothing here takes memory or time in proportion to the whole image.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.int64]


def encode(bits: npt.NDArray[np.bool_], origin: tuple[int, int], image_size: tuple[int, int]) -> bytes:
    """COCO ``counts`` of an image of ``image_size`` (h, w) whose crop at ``origin`` (y, x) is ``bits``.

    Outside the crop, which must lie inside the image, the mask is empty.
    """
    return counts_to_bytes(runs(bits, origin, image_size))


def runs(bits: npt.NDArray[np.bool_], origin: tuple[int, int], image_size: tuple[int, int]) -> Array:
    """Lengths of the alternating runs of zeros and ones, zeros first; they sum to h * w."""
    height, width = image_size
    rows, cols = bits.shape
    if rows == 0 or cols == 0:
        return np.array([height * width])
    # One empty row above the crop and one below make every column start and end with zeros.
    padded = np.zeros((cols, rows + 2), dtype=np.int8)
    padded[:, 1:-1] = bits.T
    column, edge = np.nonzero(np.diff(padded, axis=1))
    # Edges alternate between the start and the end of a run of ones, in reading order.
    edges = (origin[1] + column) * height + origin[0] + edge
    # A run that ends at the foot of a column where the next one starts at its head is one run.
    inner = np.flatnonzero(edges[1:-1:2] == edges[2::2]) * 2 + 1
    edges = np.delete(edges, np.concatenate([inner, inner + 1]))
    lengths = np.diff(edges, prepend=0, append=height * width)
    # A mask that ends with ones has no run of zeros after them.
    return lengths if lengths[-1] or len(lengths) == 1 else lengths[:-1]


def counts_to_bytes(counts: Array) -> bytes:
    """The characters that COCO stores for the run lengths ``counts``."""
    delta = counts.astype(np.int64)
    delta[3:] -= counts[1:-2]
    characters = []
    pending = delta
    alive = np.ones(len(delta), dtype=bool)
    while alive.any():
        group = pending & 31
        pending = pending >> 5
        # The sign is read off bit 4 of the last group, so -1 ends only after a group that has it set.
        more = np.where(group & 16, pending != -1, pending != 0)
        characters.append(np.where(alive, group + 48 + 32 * more, 0).astype(np.uint8))
        alive &= more
    table = np.stack(characters, axis=1)
    return table[table > 0].tobytes()

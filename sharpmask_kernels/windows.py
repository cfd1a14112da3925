"""Windows, and where they lie: the geometry of top-N windows over an image pyramid.

Scale ``s`` resizes an image of (h, w) pixels to (h_s, w_s) and pads S/2 pixels on every side, S being the
window side. Grid cell (r, c) of that scale is the S-pixel window whose first pixel in the padded image is
(16 r, 16 c). At the refinement stage j = 0, 1, 2, 3 (maps of stride 16, 8, 4, 2) the same window covers the
map cells [r * 2^j, r * 2^j + S / 16 * 2^j), and likewise for columns. Pixel centres are half-integers
throughout.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

STRIDE = 16
"""Pixels of the scaled image between neighbouring windows (DeepMask, section 3)."""


class Windows(NamedTuple):
    """N windows, as five tensors of length N on one device.

    ``score`` is fp32. ``image`` (index into the batch), ``scale`` (index into the list of scales), ``row``
    and ``col`` (grid cells of stride 16; they may be negative) are int64.
    """

    score: Tensor
    image: Tensor
    scale: Tensor
    row: Tensor
    col: Tensor

    def select(self, index: Tensor | slice) -> Windows:
        """The windows at ``index``: positions, a boolean mask, or a slice."""
        return Windows(*(field[index] for field in self))


def scaled_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Size (h_s, w_s) in pixels of an image of (height, width) at ``scale``; never below one pixel."""
    return max(1, round(height * scale)), max(1, round(width * scale))


def grid_size(height: int, width: int, window: int) -> tuple[int, int]:
    """Rows and columns of windows over a scaled image of (height, width) pixels, for window side ``window``.

    The trunk halves the padded image four times, rounding up; a window takes ``window / 16`` of those cells.
    """
    rows, cols = (math.ceil((side + window) / STRIDE) - window // STRIDE + 1 for side in (height, width))
    return rows, cols


def sample_positions(length: int, scale: float, cell: int, window: int) -> tuple[int, npt.NDArray[np.float64]]:
    """Where the image pixels of one axis sample a window's logits.

    Along an axis of ``length`` image pixels the window at grid ``cell`` of ``scale`` is sampled by pixel p at
    v(p) = (p + 1/2) * (length_s / length) - 1/2 + window / 2 - 16 * cell, in fp64.

    Returns the first pixel whose v lies in [-1/2, window - 1/2), and v of all such pixels (they are
    consecutive), clamped to [0, window - 1]. The array is empty where the window misses the image.
    """
    ratio = max(1, round(length * scale)) / length
    offset = window / 2 - STRIDE * cell
    # Bracket the pixels by inverting v, then decide by v itself, so that rounding cannot disagree with it.
    first = max(0, math.floor((-offset) / ratio - 0.5) - 1)
    last = min(length, math.ceil((window - offset) / ratio - 0.5) + 2)
    pixels = np.arange(first, max(first, last))
    v = (pixels + 0.5) * ratio - 0.5 + offset
    inside = np.flatnonzero((v >= -0.5) & (v < window - 0.5))
    start = first + int(inside[0]) if len(inside) else 0
    return start, np.clip(v[inside], 0, window - 1)


FAR = 1 << 40
"""No map has so many rows: starts of windows are cut here, so that they cannot overflow."""


def logit(probability: float) -> float:
    """The logit at which the sigmoid reaches ``probability``."""
    return math.log(probability / (1 - probability))

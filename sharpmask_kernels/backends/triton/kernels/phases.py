"""Nearest upsampling by two and the 3x3 convolution behind it, as one transposed convolution of 4x4 taps and stride 2.

Its weights, the composite weights, are sums of up to four of the convolution's. Tap (i, j) carries cell (y, x) into
pixel (2y - 1 + i, 2x - 1 + j). So a pixel, whose row and column are even or odd (its phase: 0 to 3), sees 2x2 cells,
and its four products do the work of nine.
"""

from __future__ import annotations

import triton
import triton.language as tl

COMPOSITE_TAPS = tl.constexpr(16)


@triton.jit
def composite_tap(cell: tl.tensor, phase: tl.tensor) -> tl.tensor:
    """The tap of the composite weights by which a pixel of ``phase`` sees ``cell`` of its 2x2."""
    return (3 - 2 * (cell // 2) - phase // 2) * 4 + 3 - 2 * (cell % 2) - phase % 2


@triton.jit
def pixel_of(cell: tl.tensor, x: tl.tensor, width: tl.tensor, phase: tl.tensor) -> tl.tensor:
    """The pixel of ``phase`` that lies in a cell. Both are counted over all images; ``x`` of ``width``: its column."""
    return 2 * width * (2 * (cell // width) + phase // 2) + 2 * x + phase % 2

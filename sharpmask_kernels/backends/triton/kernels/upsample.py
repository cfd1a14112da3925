"""merge_upsample and add_upsample: convolution, bias, sum, ReLU and upsampling in one launch; and the way back to the
gradient before the ReLU.

A program makes the activations of a tile of pixels and, for the bilinear form, of one row above and one column left of
it. Four activations that meet in a corner give the four output pixels around that corner, so a pixel's part of the
output is the corner to its upper left: output rows 2y - 1 and 2y. The activations of the tile lie in one row after the
other, each COLS + 1 long. From these ``corners`` picks, through shared memory, the four of every corner in a grid of
COLS columns. COLS is a multiple of 8, so that a program packs whole bytes of the bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .conv3x3 import convolve, relu
from .maps import Map, locate, offset, upsampled_gradient

NEARER = tl.constexpr(0.75)
FARTHER = tl.constexpr(0.25)
"""Bilinear weights of the nearer and the farther row or column. Centres of output pixels lie a quarter of an input
pixel away from those of input pixels (half-pixel centres)."""

BYTE = tl.constexpr(8)
"""Activations whose bits share a byte."""


@triton.jit
def tile_of(
    tile: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    HALO: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The image (64 bits) that a tile of ROWS x COLS corners is of, and its first row and column."""
    col_tiles = (width + HALO + COLS - 1) // COLS
    row_tiles = (height + HALO + ROWS - 1) // ROWS
    image = (tile // (row_tiles * col_tiles)).to(tl.int64)
    return image, tile // col_tiles % row_tiles * ROWS, tile % col_tiles * COLS


@triton.jit
def corners(
    activation: tl.tensor, ROWS: tl.constexpr, COLS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """The four activations around each corner of a tile: above to the left, above, left, and the pixel's own."""
    WIDE: tl.constexpr = COLS + 1
    p = tl.arange(0, activation.shape[0])
    # The last row is picked again for what PIXELS is more than the tile: nothing of that is stored.
    corner = tl.broadcast_to((tl.minimum(p // COLS, ROWS - 1) * WIDE + p % COLS)[:, None], activation.shape)
    above_left = tl.gather(activation, corner, 0)
    above = tl.gather(activation, corner + 1, 0)
    left = tl.gather(activation, corner + WIDE, 0)
    own = tl.gather(activation, corner + WIDE + 1, 0)
    return above_left, above, left, own


@triton.jit
def save_bits(
    active_ptr: tl.tensor,  # (batch, OUT, height, ceil(width / 8))
    activation: tl.tensor,
    image: tl.tensor,
    first_row: tl.tensor,
    first_col: tl.tensor,
    n: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    OUT: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    PIXELS: tl.constexpr,
) -> None:
    """Stores which activations of a tile are above zero, eight columns to a byte, the leftmost in the lowest bit."""
    BYTES: tl.constexpr = COLS // BYTE
    bytes_wide = (width + BYTE - 1) // BYTE
    col = tl.arange(0, PIXELS) % COLS + first_col
    bits = tl.where((activation <= 0) | (col >= width)[:, None], 0, 1)
    bits = tl.reshape(bits, (PIXELS // BYTE, BYTE, n.shape[0])) << tl.arange(0, BYTE)[None, :, None]
    group = tl.arange(0, PIXELS // BYTE)
    byte_row = first_row + group // BYTES
    byte_col = first_col // BYTE + group % BYTES
    at = (image * OUT + n[None, :]) * height + byte_row[:, None]
    written = (group // BYTES < ROWS) & (byte_row < height) & (byte_col < bytes_wide)
    at = at * bytes_wide + byte_col[:, None]
    tl.store(active_ptr + at, tl.sum(bits, 1).to(tl.uint8), mask=written[:, None] & (n < OUT)[None, :])


@triton.jit
def store_upsampled(
    out: Map,
    around: tl.tuple,
    image: tl.tensor,
    first_row: tl.tensor,
    first_col: tl.tensor,
    n: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    OUT: tl.constexpr,
    BILINEAR: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    PIXELS: tl.constexpr,
) -> None:
    """Stores the four output pixels around each corner of a tile (BILINEAR), or of each activation.

    ``around``: the activations above to the left, above and left of each pixel, and its own.
    """
    above_left, above, left, own = around
    HALO: tl.constexpr = 1 if BILINEAR else 0
    p = tl.arange(0, PIXELS)
    owned = p // COLS < ROWS
    outputs = (n < OUT)[None, :]
    row = p // COLS + first_row
    col = p % COLS + first_col
    for i in tl.static_range(2):
        for j in tl.static_range(2):
            if BILINEAR:
                # The upper outputs (i = 0) are nearer to the activations above, the left ones (j = 0) to those left.
                value = (FARTHER if i else NEARER) * (
                    (FARTHER if j else NEARER) * above_left + (NEARER if j else FARTHER) * above
                )
                value += (NEARER if i else FARTHER) * (
                    (FARTHER if j else NEARER) * left + (NEARER if j else FARTHER) * own
                )
            else:
                value = own
            out_row = 2 * row - HALO + i
            out_col = 2 * col - HALO + j
            written = owned & (out_row >= 0) & (out_row < 2 * height)
            written = written & (out_col >= 0) & (out_col < 2 * width)
            at = offset(out, image, out_row, out_col)[:, None] + n.to(tl.int64)[None, :] * out.channel
            tl.store(out.pointer + at, value.to(out.pointer.dtype.element_ty), mask=written[:, None] & outputs)


@triton.jit(do_not_specialize=["height", "width"])
def forward(
    a: Map,
    b: Map | None,
    weight_ptr: tl.tensor,  # (OUT, 3, 3, A + B)
    bias_ptr: tl.tensor | None,
    addend: Map | None,
    out: Map,
    active_ptr: tl.tensor | None,  # (batch, OUT, height, ceil(width / 8))
    height: tl.tensor,
    width: tl.tensor,
    A: tl.constexpr,
    B: tl.constexpr,
    OUT: tl.constexpr,
    BILINEAR: tl.constexpr,
    REPLICATE: tl.constexpr,
    PADDED: tl.constexpr,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
    COLS: tl.constexpr,
    N: tl.constexpr,
    PIXELS: tl.constexpr,
) -> None:
    """One tile of the upsampled ReLU of a convolution and ``addend``, and the bits of the activations."""
    HALO: tl.constexpr = 1 if BILINEAR else 0
    WIDE: tl.constexpr = COLS + HALO
    ROWS: tl.constexpr = PIXELS // WIDE - HALO
    image, first_row, first_col = tile_of(tl.program_id(0), height, width, ROWS, COLS, HALO)
    n = tl.program_id(1) * N + tl.arange(0, N)

    # Beyond the border lie the activations of the border, for the upsampling to find them there.
    p = tl.arange(0, PIXELS)
    y = first_row - HALO + tl.minimum(p // WIDE, ROWS + HALO - 1)  # what is left of PIXELS repeats the last row
    y = tl.minimum(tl.maximum(y, 0), height - 1)
    x = tl.minimum(tl.maximum(first_col - HALO + p % WIDE, 0), width - 1)
    acc = convolve(
        a, b, weight_ptr, bias_ptr, image, y, x, n, height, width, A, B, OUT, REPLICATE, PADDED, K, PRECISION
    )
    if addend is not None:
        pixel = offset(addend, image, y, x)[:, None]
        acc += tl.load(addend.pointer + pixel + n[None, :], mask=(n < OUT)[None, :], other=0).to(tl.float32)
    own = relu(acc)
    above_left, above, left = own, own, own
    if BILINEAR:
        above_left, above, left, own = corners(own, ROWS, COLS)
    if active_ptr is not None:
        save_bits(active_ptr, own, image, first_row, first_col, n, height, width, OUT, ROWS, COLS, PIXELS)
    around = (above_left, above, left, own)
    store_upsampled(out, around, image, first_row, first_col, n, height, width, OUT, BILINEAR, ROWS, COLS, PIXELS)


@triton.jit(do_not_specialize=["pixels", "height", "width"])
def backward(
    grad: Map,
    active_ptr: tl.tensor,  # (batch, OUT, height, ceil(width / 8))
    out_ptr: tl.tensor,  # (batch, height, width, OUT)
    pixels: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    OUT: tl.constexpr,
    UPSAMPLE: tl.constexpr,
    N: tl.constexpr,
    PIXELS: tl.constexpr,
) -> None:
    """The gradient before the ReLU: every activation gathers from the output pixels that it went into."""
    p = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    n = tl.program_id(1) * N + tl.arange(0, N)
    image, y, x = locate(tl.minimum(p, pixels - 1), height, width)
    real = (p < pixels)[:, None] & (n < OUT)[None, :]
    total = upsampled_gradient(
        grad, image[:, None], y[:, None], x[:, None], n[None, :], real, height, width, UPSAMPLE=UPSAMPLE
    )
    bytes_wide = (width + BYTE - 1) // BYTE
    at = ((image[:, None] * OUT + n[None, :]) * height + y[:, None]) * bytes_wide + (x // BYTE)[:, None]
    bits = tl.load(active_ptr + at, mask=real, other=0).to(tl.int32) >> (x % BYTE)[:, None]
    total = tl.where((bits & 1) == 1, total, 0)
    at = p.to(tl.int64)[:, None] * OUT + n[None, :]
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=real)

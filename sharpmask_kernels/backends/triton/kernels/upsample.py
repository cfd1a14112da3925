"""merge_upsample and add_upsample: convolution, bias, sum, ReLU and upsampling in one launch; and the way back to the
gradient before the ReLU.

A program makes the activations of a tile of pixels and, for the bilinear form, of one row above and one column left of
it. Four activations that meet in a corner give the four output pixels around that corner, so a pixel's part of the
output is the corner to its upper left: output rows 2y - 1 and 2y. The tile is flattened with rows of COLS + 1
activations, of which ``gather`` picks, through shared memory, the four of every corner in a grid of COLS columns. COLS
is a multiple of 8: a program packs whole bytes of the bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .conv3x3 import convolve
from .tuning import candidates


@triton.autotune(
    candidates((128, 4, 2), (128, 4, 3), (256, 8, 2), interpreted=128),
    key=["A", "B", "OUT", "BILINEAR", "REPLICATE"],
)
@triton.jit(do_not_specialize=["height", "width"])
def forward(
    a_ptr: tl.tensor,
    a_strides: tl.tensor,
    b_ptr: tl.tensor,
    b_strides: tl.tensor,
    weight_ptr: tl.tensor,  # (OUT, 3, 3, A + B)
    bias_ptr: tl.tensor,
    addend_ptr: tl.tensor,
    addend_strides: tl.tensor,
    out_ptr: tl.tensor,
    out_strides: tl.tensor,  # batch, channel, row, column
    active_ptr: tl.tensor,  # (batch, OUT, height, ceil(width / 8))
    height: tl.tensor,
    width: tl.tensor,
    A: tl.constexpr,
    B: tl.constexpr,
    OUT: tl.constexpr,
    A_UNIT: tl.constexpr,
    B_UNIT: tl.constexpr,
    ADDEND_UNIT: tl.constexpr,
    OUT_UNIT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_ADDEND: tl.constexpr,
    SAVE: tl.constexpr,
    BILINEAR: tl.constexpr,
    REPLICATE: tl.constexpr,
    PADDED: tl.constexpr,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
    COLS: tl.constexpr,
    N: tl.constexpr,
    PIXELS: tl.constexpr,
) -> None:
    HALO: tl.constexpr = 1 if BILINEAR else 0
    WIDE: tl.constexpr = COLS + HALO
    ROWS: tl.constexpr = PIXELS // WIDE - HALO
    col_tiles = (width + HALO + COLS - 1) // COLS
    row_tiles = (height + HALO + ROWS - 1) // ROWS
    tile = tl.program_id(0)
    image = (tile // (row_tiles * col_tiles)).to(tl.int64)
    first_row = tile // col_tiles % row_tiles * ROWS
    first_col = tile % col_tiles * COLS
    n = tl.program_id(1) * N + tl.arange(0, N)

    # Beyond the border, the activations of the border: so the upsampling has it.
    p = tl.arange(0, PIXELS)
    y = first_row - HALO + tl.minimum(p // WIDE, ROWS + HALO - 1)  # what is left of PIXELS repeats the last row
    y = tl.minimum(tl.maximum(y, 0), height - 1)
    x = tl.minimum(tl.maximum(first_col - HALO + p % WIDE, 0), width - 1)
    acc = convolve(
        a_ptr,
        a_strides,
        b_ptr,
        b_strides,
        weight_ptr,
        image,
        y,
        x,
        n,
        height,
        width,
        A=A,
        B=B,
        OUT=OUT,
        A_UNIT=A_UNIT,
        B_UNIT=B_UNIT,
        REPLICATE=REPLICATE,
        PADDED=PADDED,
        K=K,
        PRECISION=PRECISION,
        PIXELS=PIXELS,
        N=N,
    )
    outputs = n < OUT
    if HAS_BIAS:
        acc += tl.load(bias_ptr + n, mask=outputs, other=0).to(tl.float32)[None, :]
    if HAS_ADDEND:
        at = (image * addend_strides[0] + y.to(tl.int64) * addend_strides[1] + x * addend_strides[2]) * ADDEND_UNIT
        acc += tl.load(addend_ptr + at[:, None] + n[None, :], mask=outputs[None, :], other=0).to(tl.float32)
    here = tl.where(acc <= 0, 0, acc)  # and not a maximum, which may drop NaN

    row = p // COLS
    col = p % COLS
    owned = row < ROWS
    if BILINEAR:
        corner = tl.broadcast_to((tl.minimum(row, ROWS - 1) * WIDE + col)[:, None], (PIXELS, N))
        above_left = tl.gather(here, corner, 0)
        above = tl.gather(here, corner + 1, 0)
        left = tl.gather(here, corner + WIDE, 0)
        here = tl.gather(here, corner + WIDE + 1, 0)
    row += first_row
    col += first_col

    if SAVE:
        bytes_wide = (width + 7) // 8
        bits = tl.where((here <= 0) | (col >= width)[:, None], 0, 1)
        bits = tl.reshape(bits, (PIXELS // 8, 8, N)) << tl.arange(0, 8)[None, :, None]
        group = tl.arange(0, PIXELS // 8)
        byte_row = first_row + group // (COLS // 8)
        byte_col = first_col // 8 + group % (COLS // 8)
        at = (image * OUT + n[None, :]) * height + byte_row[:, None]
        written = (group // (COLS // 8) < ROWS) & (byte_row < height) & (byte_col < bytes_wide)
        at = at * bytes_wide + byte_col[:, None]
        tl.store(active_ptr + at, tl.sum(bits, 1).to(tl.uint8), mask=written[:, None] & outputs[None, :])

    for i in tl.static_range(2):
        for j in tl.static_range(2):
            if BILINEAR:
                # Three quarters of the nearer row and column, a quarter of the others.
                value = (0.75 - 0.5 * i) * ((0.75 - 0.5 * j) * above_left + (0.25 + 0.5 * j) * above)
                value += (0.25 + 0.5 * i) * ((0.75 - 0.5 * j) * left + (0.25 + 0.5 * j) * here)
            else:
                value = here
            out_row = 2 * row - HALO + i
            out_col = 2 * col - HALO + j
            written = owned & (out_row >= 0) & (out_row < 2 * height) & (out_col >= 0) & (out_col < 2 * width)
            at = (image * out_strides[0] + out_row.to(tl.int64) * out_strides[2] + out_col * out_strides[3]) * OUT_UNIT
            at = at[:, None] + n.to(tl.int64)[None, :] * out_strides[1]
            tl.store(out_ptr + at, value.to(out_ptr.dtype.element_ty), mask=written[:, None] & outputs[None, :])


@triton.jit(do_not_specialize=["pixels", "height", "width"])
def backward(
    grad_ptr: tl.tensor,
    grad_strides: tl.tensor,  # batch, row, column
    active_ptr: tl.tensor,  # (batch, OUT, height, ceil(width / 8))
    out_ptr: tl.tensor,  # (batch, height, width, OUT)
    pixels: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    OUT: tl.constexpr,
    GRAD_UNIT: tl.constexpr,
    BILINEAR: tl.constexpr,
    N: tl.constexpr,
    PIXELS: tl.constexpr,
) -> None:
    """The gradient before the ReLU: every activation gathers from the output pixels that it went into."""
    p = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    n = tl.program_id(1) * N + tl.arange(0, N)
    near = tl.minimum(p, pixels - 1)
    x = near % width
    y = near // width % height
    image = (near // width // height).to(tl.int64)
    real = (p < pixels)[:, None] & (n < OUT)[None, :]
    total = tl.full((PIXELS, N), 0.0, tl.float32)
    TAPS: tl.constexpr = 4 if BILINEAR else 2
    for i in tl.range(TAPS):
        for j in tl.static_range(TAPS):
            if BILINEAR:
                # Beyond the border the quarters fell back onto it.
                row = tl.minimum(tl.maximum(2 * y - 1 + i, 0), 2 * height - 1)
                col = tl.minimum(tl.maximum(2 * x - 1 + j, 0), 2 * width - 1)
                share = tl.where((i == 1) | (i == 2), 0.75, 0.25) * (0.75 if j == 1 or j == 2 else 0.25)
            else:
                row = 2 * y + i
                col = 2 * x + j
                share = 1.0
            at = (image * grad_strides[0] + row.to(tl.int64) * grad_strides[1] + col * grad_strides[2]) * GRAD_UNIT
            total += share * tl.load(grad_ptr + at[:, None] + n[None, :], mask=real, other=0).to(tl.float32)
    bytes_wide = (width + 7) // 8
    at = ((image[:, None] * OUT + n[None, :]) * height + y[:, None]) * bytes_wide + (x // 8)[:, None]
    bits = tl.load(active_ptr + at, mask=real, other=0).to(tl.int32) >> (x % 8)[:, None]
    total = tl.where((bits & 1) == 1, total, 0)
    at = p.to(tl.int64)[:, None] * OUT + n[None, :]
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=real)

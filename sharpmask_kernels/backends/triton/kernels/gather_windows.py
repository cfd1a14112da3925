"""Windows cut out of a map, and back.

Tiles are two-dimensional, cells by channels, their last dimension the one that is contiguous in memory (channels in
channels_last, cells otherwise), so that neighbouring threads touch neighbouring addresses. Strides of batch, rows and
columns are in units of ``UNIT`` elements, which tells the compiler how wide it may load. Offsets are 64-bit. Every load
and store is masked. Small helpers are written out: under the interpreter a call of one, tl.cdiv and tl.zeros
among them, takes 2 ms.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["this", "scales", "batch", "height", "width", "size", "limit", "step"])
def forward(
    map_ptr: tl.tensor,
    map_strides: tl.tensor,
    out_ptr: tl.tensor,
    out_strides: tl.tensor,
    image_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    row_ptr: tl.tensor,
    col_ptr: tl.tensor,
    this: tl.tensor,  # the scale of this map
    scales: tl.tensor,
    batch: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    size: tl.tensor,
    limit: tl.tensor,  # rows and cols beyond are cut to it: far outside, and no overflow
    step: tl.tensor,
    C: tl.constexpr,
    MAP_UNIT: tl.constexpr,
    OUT_UNIT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    CELLS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    """One tile of one window, if the window is of this map. Those of no map at all are zeros, written for map 0."""
    cell_tiles = (size * size + CELLS - 1) // CELLS
    channel_tiles = (C + CHANNELS - 1) // CHANNELS
    pid = tl.program_id(0)
    window = (pid // (cell_tiles * channel_tiles)).to(tl.int64)
    first_cell = pid // channel_tiles % cell_tiles * CELLS
    first_channel = pid % channel_tiles * CHANNELS
    scale = tl.load(scale_ptr + window)
    image = tl.load(image_ptr + window)
    unknown = (scale < 0) | (scale >= scales)
    if (scale == this) | (unknown & (this == 0)):
        top = tl.minimum(tl.maximum(tl.load(row_ptr + window), -limit), limit) * step
        left = tl.minimum(tl.maximum(tl.load(col_ptr + window), -limit), limit) * step
        if CHANNELS_LAST:
            cell = first_cell + tl.arange(0, CELLS)[:, None]
            channel = first_channel + tl.arange(0, CHANNELS)[None, :]
        else:
            cell = first_cell + tl.arange(0, CELLS)[None, :]
            channel = first_channel + tl.arange(0, CHANNELS)[:, None]
        y = cell // size
        x = cell % size
        written = (y < size) & (channel < C)
        row = top + y
        col = left + x
        known = (scale == this) & (image >= 0) & (image < batch)
        inside = (row >= 0) & (row < tl.where(known, height, 0)) & (col >= 0) & (col < width)
        source = (image * map_strides[0] + row * map_strides[2] + col * map_strides[3]) * MAP_UNIT
        source += channel.to(tl.int64) * map_strides[1]
        values = tl.load(map_ptr + source, mask=written & inside, other=0)
        target = (window * out_strides[0] + y.to(tl.int64) * out_strides[2] + x * out_strides[3]) * OUT_UNIT
        target += channel.to(tl.int64) * out_strides[1]
        tl.store(out_ptr + target, values, mask=written)


@triton.jit(do_not_specialize=["segment", "height", "width", "size"])
def backward(
    out_ptr: tl.tensor,
    out_strides: tl.tensor,
    grad_ptr: tl.tensor,
    grad_strides: tl.tensor,
    bounds_ptr: tl.tensor,  # windows [bounds[k], bounds[k + 1]) are of segment k, a map of an image
    window_ptr: tl.tensor,  # windows in the order of their segments: index,
    top_ptr: tl.tensor,  # first row on the map,
    left_ptr: tl.tensor,  # and first column
    segment: tl.tensor,  # of the first image
    height: tl.tensor,
    width: tl.tensor,
    size: tl.tensor,
    C: tl.constexpr,
    OUT_UNIT: tl.constexpr,
    GRAD_UNIT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    """One tile of one image's map: the sum of all windows over it, in their order."""
    col_tiles = (width + COLS - 1) // COLS
    row_tiles = (height + ROWS - 1) // ROWS
    channel_tiles = (C + CHANNELS - 1) // CHANNELS
    pid = tl.program_id(0)
    channel_tile = pid % channel_tiles
    col_tile = pid // channel_tiles % col_tiles
    row_tile = pid // (channel_tiles * col_tiles) % row_tiles
    image = (pid // (channel_tiles * col_tiles * row_tiles)).to(tl.int64)
    if CHANNELS_LAST:
        cell = tl.arange(0, ROWS * COLS)[:, None]
        channel = channel_tile * CHANNELS + tl.arange(0, CHANNELS)[None, :]
        total = tl.full((ROWS * COLS, CHANNELS), 0.0, tl.float32)
    else:
        cell = tl.arange(0, ROWS * COLS)[None, :]
        channel = channel_tile * CHANNELS + tl.arange(0, CHANNELS)[:, None]
        total = tl.full((CHANNELS, ROWS * COLS), 0.0, tl.float32)
    row = row_tile * ROWS + cell // COLS
    col = col_tile * COLS + cell % COLS
    inside = (row < height) & (col < width) & (channel < C)
    far = channel.to(tl.int64)
    end = tl.load(bounds_ptr + segment + image + 1)
    for i in range(tl.load(bounds_ptr + segment + image), end):
        top = tl.load(top_ptr + i)
        left = tl.load(left_ptr + i)
        over_rows = (top < (row_tile + 1) * ROWS) & (top + size > row_tile * ROWS)
        over_cols = (left < (col_tile + 1) * COLS) & (left + size > col_tile * COLS)
        if over_rows & over_cols:
            y = row - top
            x = col - left
            window = tl.load(window_ptr + i)
            source = (window * grad_strides[0] + y * grad_strides[2] + x * grad_strides[3]) * GRAD_UNIT
            source += far * grad_strides[1]
            covered = inside & (y >= 0) & (y < size) & (x >= 0) & (x < size)
            total += tl.load(grad_ptr + source, mask=covered, other=0).to(tl.float32)
    target = (image * out_strides[0] + row.to(tl.int64) * out_strides[2] + col * out_strides[3]) * OUT_UNIT
    target += far * out_strides[1]
    tl.store(out_ptr + target, total.to(out_ptr.dtype.element_ty), mask=inside)

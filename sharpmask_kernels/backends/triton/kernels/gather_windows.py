"""Windows cut out of a map, and back.

A tile has two dimensions, cells and channels. Its last dimension is the one that is contiguous in memory (channels in
channels_last, cells otherwise), so that neighbouring threads touch neighbouring addresses. Offsets are 64-bit. Every
load and store is masked. ``tl.cdiv`` and ``tl.zeros`` are avoided: each call of a helper costs Triton's interpreter up
to 2 ms.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .maps import Map, cells_and_channels, offset


@triton.jit(do_not_specialize=["this", "scales", "batch", "height", "width", "size", "limit", "step"])
def forward(
    source: Map,
    out: Map,  # (windows, channels, size, size)
    image_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    row_ptr: tl.tensor,
    col_ptr: tl.tensor,
    this: tl.tensor,  # the scale of the map
    scales: tl.tensor,
    batch: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    size: tl.tensor,
    limit: tl.tensor,  # rows and columns are clamped to it: still far outside of the map, and nothing overflows
    step: tl.tensor,
    C: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    CELLS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    """One tile of one window, if the window is of this map. Windows of no map are zeros, which the launch for map 0
    writes."""
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
        cell, channel = cells_and_channels(CELLS, CHANNELS, CHANNELS_LAST)
        cell += first_cell
        channel += first_channel
        y = cell // size
        x = cell % size
        written = (y < size) & (channel < C)
        row = top + y
        col = left + x
        known = (scale == this) & (image >= 0) & (image < batch)
        inside = (row >= 0) & (row < tl.where(known, height, 0)) & (col >= 0) & (col < width)
        at = offset(source, image, row, col) + channel.to(tl.int64) * source.channel
        values = tl.load(source.pointer + at, mask=written & inside, other=0)
        at = offset(out, window, y, x) + channel.to(tl.int64) * out.channel
        tl.store(out.pointer + at, values, mask=written)


@triton.jit(do_not_specialize=["segment", "height", "width", "size"])
def backward(
    out: Map,
    grad: Map,  # (windows, channels, size, size)
    bounds_ptr: tl.tensor,  # windows [bounds[k], bounds[k + 1]) belong to segment k, which is one map of one image
    window_ptr: tl.tensor,  # the index of each window, in the order of segments,
    top_ptr: tl.tensor,  # its first row on the map,
    left_ptr: tl.tensor,  # and its first column
    segment: tl.tensor,  # that of the first image
    height: tl.tensor,
    width: tl.tensor,
    size: tl.tensor,
    C: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    """One tile of the map of one image: the sum of all windows that cover it, in their order."""
    col_tiles = (width + COLS - 1) // COLS
    row_tiles = (height + ROWS - 1) // ROWS
    channel_tiles = (C + CHANNELS - 1) // CHANNELS
    pid = tl.program_id(0)
    channel_tile = pid % channel_tiles
    col_tile = pid // channel_tiles % col_tiles
    row_tile = pid // (channel_tiles * col_tiles) % row_tiles
    image = (pid // (channel_tiles * col_tiles * row_tiles)).to(tl.int64)
    cell, channel = cells_and_channels(ROWS * COLS, CHANNELS, CHANNELS_LAST)
    channel += channel_tile * CHANNELS
    row = row_tile * ROWS + cell // COLS
    col = col_tile * COLS + cell % COLS
    inside = (row < height) & (col < width) & (channel < C)
    total = tl.full(inside.shape, 0.0, tl.float32)
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
            at = offset(grad, window, y, x) + channel.to(tl.int64) * grad.channel
            covered = inside & (y >= 0) & (y < size) & (x >= 0) & (x < size)
            total += tl.load(grad.pointer + at, mask=covered, other=0).to(tl.float32)
    at = offset(out, image, row, col) + channel.to(tl.int64) * out.channel
    tl.store(out.pointer + at, total.to(out.pointer.dtype.element_ty), mask=inside)

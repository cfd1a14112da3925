"""3x3 convolutions as implicit matrix products, forward and backward.

The channels of a map must be contiguous in memory (channels_last, or a slice of it).

The contraction runs over k = tap * PADDED + channel. With few channels one step of the matrix unit holds several taps:
its 16 values are two taps of 4 + 4 channels, where one tap would leave half of them empty. Padding remains in three
places: channel counts that are no power of two, 9 taps that do not fill the last step, and outputs, which are padded to
8 columns on NVIDIA and 16 on AMD. At the finest level of SharpMask (4 + 4 channels, 2 outputs) a pixel takes 768
products where 144 are needed. The matrix unit is still the better choice: an H100 needs 0.4 to 0.8 clocks of a
multiprocessor for the 768, and 1.1 for 144 plain multiply-adds. Both are less than the 2.2 clocks that the pixel's 32
bytes take from memory. So one form serves every channel count.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .maps import Map, locate, offset, upsampled
from .phases import COMPOSITE_TAPS, composite_tap, pixel_of

TAPS = tl.constexpr(9)
"""Of a 3x3 convolution. Tap t looks t // 3 - 1 rows down and t % 3 - 1 columns to the right."""


@triton.jit
def joined_channels(
    a: Map,
    b: Map | None,
    image: tl.tensor,
    row: tl.tensor,
    col: tl.tensor,
    channel: tl.tensor,
    inside: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    A: tl.constexpr,
    REPLICATE: tl.constexpr,
    UPSAMPLE: tl.constexpr = None,
) -> tl.tensor:
    """What taps see: ``channel`` of a map, or of two that are joined, at (image, row, col), zero where not ``inside``.

    Pixels run along the first dimension, taps and channels along the second. Beyond the border lie the pixels of the
    border (REPLICATE), or zeros. UPSAMPLE: map ``a`` is half as high and wide, and upsampled as it is read.
    """
    if REPLICATE:
        row = tl.minimum(tl.maximum(row, 0), height - 1)
        col = tl.minimum(tl.maximum(col, 0), width - 1)
    else:
        inside = inside & (row >= 0) & (row < height) & (col >= 0) & (col < width)
    of_a = inside & (channel < A)[None, :]
    if UPSAMPLE is None:
        pixel = offset(a, image, row, col)
        values = tl.load(a.pointer + pixel + channel[None, :], mask=of_a, other=0)
    else:
        values = upsampled(a, image, row, col, channel[None, :], of_a, height // 2, width // 2, UPSAMPLE=UPSAMPLE)
        values = values.to(a.pointer.dtype.element_ty)
    if b is not None:
        pixel = offset(b, image, row, col)
        of_b = inside & (channel >= A)[None, :]
        values += tl.load(b.pointer + pixel + (channel - A)[None, :], mask=of_b, other=0)
    return values


@triton.jit
def accumulate(
    acc: tl.tensor,
    a: Map,
    b: Map | None,
    weight_ptr: tl.tensor,  # (OUT, 3, 3, CHANNELS); of a phase the composite weights, (OUT, 4, 4, CHANNELS)
    phase: tl.tensor | None,
    image: tl.tensor,
    y: tl.tensor,
    x: tl.tensor,
    n: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    A: tl.constexpr,
    B: tl.constexpr,
    FIRST: tl.constexpr,
    CHANNELS: tl.constexpr,
    OUT: tl.constexpr,
    REPLICATE: tl.constexpr,
    PADDED: tl.constexpr,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
    UPSAMPLE: tl.constexpr = None,
) -> tl.tensor:
    """``acc`` and the products of the A + B channels of two maps around pixels (image, y, x) (rows), which are FIRST ..
    of the weight's, for outputs ``n`` (columns).

    Of a ``phase``, a pixel sees the 2x2 cells of which (y, x) is the last.
    """
    SIDE: tl.constexpr = 3 if phase is None else 2
    ENTRIES: tl.constexpr = TAPS if phase is None else COMPOSITE_TAPS
    for i in tl.range((SIDE * SIDE * PADDED + K - 1) // K):
        k = i * K + tl.arange(0, K)
        tap = k // PADDED
        channel = k % PADDED
        real = (tap < SIDE * SIDE) & (channel < A + B)
        row = y[:, None] + (tap // SIDE - 1)[None, :]
        col = x[:, None] + (tap % SIDE - 1)[None, :]
        inside = real[None, :]
        if K <= PADDED:
            # Always true. Without it LLVM would unroll the whole loop where a step lies within one tap, and forward
            # would take 72 registers instead of 48 (sm_90, 64 channels).
            inside = inside & (row >= -1) & (row <= height) & (col >= -1) & (col <= width)
        values = joined_channels(
            a, b, image, row, col, channel, inside, height, width, A=A, REPLICATE=REPLICATE, UPSAMPLE=UPSAMPLE
        )
        of_weight = tap if phase is None else composite_tap(tap, phase)
        entry = n[None, :] * (ENTRIES * CHANNELS) + (of_weight * CHANNELS + FIRST + channel)[:, None]
        weight = tl.load(weight_ptr + entry, mask=real[:, None] & (n < OUT)[None, :], other=0)
        acc = tl.dot(values, weight, acc, input_precision=PRECISION)
    return acc


@triton.jit
def convolve(
    a: Map,
    b: Map | None,
    weight_ptr: tl.tensor,  # (OUT, 3, 3, A + B)
    bias_ptr: tl.tensor | None,
    image: tl.tensor,
    y: tl.tensor,
    x: tl.tensor,
    n: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    A: tl.constexpr,
    B: tl.constexpr,
    OUT: tl.constexpr,
    REPLICATE: tl.constexpr,
    PADDED: tl.constexpr,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tl.tensor:
    """Outputs ``n`` (columns) of a convolution of the A + B channels of two maps at pixels (image, y, x) (rows)."""
    acc = tl.full((y.shape[0], n.shape[0]), 0.0, tl.float32)
    acc = accumulate(
        acc, a, b, weight_ptr, None, image, y, x, n, height, width, A, B, 0, A + B, OUT, REPLICATE, PADDED, K, PRECISION
    )
    return add_bias(acc, bias_ptr, n, OUT=OUT)


@triton.jit
def add_bias(acc: tl.tensor, bias_ptr: tl.tensor | None, n: tl.tensor, OUT: tl.constexpr) -> tl.tensor:
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + n, mask=n < OUT, other=0).to(tl.float32)[None, :]
    return acc


@triton.jit
def relu(x: tl.tensor) -> tl.tensor:
    return tl.where(x <= 0, 0, x)  # tl.maximum may drop NaN


@triton.jit(do_not_specialize=["pixels", "height", "width"])
def forward(
    x: Map,
    weight_ptr: tl.tensor,  # (OUT, 3, 3, CHANNELS)
    bias_ptr: tl.tensor | None,
    out: Map,
    pixels: tl.tensor,  # of all images
    height: tl.tensor,
    width: tl.tensor,
    CHANNELS: tl.constexpr,
    OUT: tl.constexpr,
    RELU: tl.constexpr,
    REPLICATE: tl.constexpr,
    PADDED: tl.constexpr,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
    N: tl.constexpr,
    PIXELS: tl.constexpr,
) -> None:
    """A convolution of one map, and ReLU of it if asked."""
    p = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    n = tl.program_id(1) * N + tl.arange(0, N)
    image, row, col = locate(tl.minimum(p, pixels - 1), height, width)
    acc = convolve(
        x,
        None,
        weight_ptr,
        bias_ptr,
        image[:, None],
        row,
        col,
        n,
        height,
        width,
        A=CHANNELS,
        B=0,
        OUT=OUT,
        REPLICATE=REPLICATE,
        PADDED=PADDED,
        K=K,
        PRECISION=PRECISION,
    )
    target = offset(out, image, row, col)[:, None] + n.to(tl.int64)[None, :] * out.channel
    if RELU:
        acc = relu(acc)
    tl.store(
        out.pointer + target, acc.to(out.pointer.dtype.element_ty), mask=(p < pixels)[:, None] & (n < OUT)[None, :]
    )


@triton.jit
def output_gradients(
    grad_ptr: tl.tensor,  # (batch, SCALE * height, SCALE * width, OUT)
    pixel: tl.tensor,
    y: tl.tensor,
    x: tl.tensor,
    tap: tl.tensor,
    o: tl.tensor,
    real: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    OUT: tl.constexpr,
    REPLICATE: tl.constexpr,
    SCALE: tl.constexpr,
) -> tl.tensor:
    """The gradients of outputs ``o`` that ``tap`` carried (y, x) into, zero where there are none or not ``real``.

    SCALE 2: ``tap`` is one of the composite weights', and (y, x) a cell of the map before its upsampling. ``pixel`` is
    the output at (SCALE * y, SCALE * x).
    """
    if SCALE == 1:
        # A tap that looks down carries a pixel up.
        down = (1 - tap // 3)[None, :]
        right = (1 - tap % 3)[None, :]
    else:
        down = (tap // 4 - 1)[None, :]
        right = (tap % 4 - 1)[None, :]
    row_inside = real[None, :] & (SCALE * y + down >= 0) & (SCALE * y + down < SCALE * height)
    col_inside = (SCALE * x + right >= 0) & (SCALE * x + right < SCALE * width)
    at = (pixel + down * (SCALE * width) + right).to(tl.int64) * OUT + o[None, :]
    values = tl.load(grad_ptr + at, mask=row_inside & col_inside, other=0)
    if REPLICATE:
        # The taps that looked beyond the border saw the border, and carried it into the outputs on the border.
        row_edge = real[None, :] & (((down == SCALE) & (y == 0)) | ((down == -1) & (y == height - 1)))
        col_edge = ((right == SCALE) & (x == 0)) | ((right == -1) & (x == width - 1))
        edge_down = 0
        edge_right = 0
        if SCALE == 2:
            edge_down = tl.where(down == -1, 1, 0)
            edge_right = tl.where(right == -1, 1, 0)
        on_row = (pixel + edge_down * (SCALE * width) + right).to(tl.int64) * OUT + o[None, :]
        on_col = (pixel + down * (SCALE * width) + edge_right).to(tl.int64) * OUT + o[None, :]
        on_both = (pixel + edge_down * (SCALE * width) + edge_right).to(tl.int64) * OUT + o[None, :]
        total = values.to(tl.float32)
        total += tl.load(grad_ptr + on_row, mask=row_edge & col_inside, other=0).to(tl.float32)
        total += tl.load(grad_ptr + on_col, mask=row_inside & col_edge, other=0).to(tl.float32)
        total += tl.load(grad_ptr + on_both, mask=row_edge & col_edge, other=0).to(tl.float32)
        values = total.to(values.dtype)
    return values


@triton.jit(do_not_specialize=["pixels", "height", "width"])
def input_gradient(
    grad_ptr: tl.tensor,  # (batch, SCALE * height, SCALE * width, OUT)
    weight_ptr: tl.tensor,  # (OUT, 3, 3, CHANNELS), or the composite weights, (OUT, 4, 4, CHANNELS)
    a: Map | None,
    b: Map | None,
    activation: Map | None,
    pixels: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    CHANNELS: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    SPLIT: tl.constexpr,
    OUT: tl.constexpr,
    REPLICATE: tl.constexpr,
    SCALE: tl.constexpr,
    PADDED: tl.constexpr,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
    N: tl.constexpr,
    PIXELS: tl.constexpr,
) -> None:
    """The gradient of channels FIRST .. LAST of a convolution's input: those before SPLIT go to a, the others to b.

    Each pixel gathers from the outputs it went into. If a ReLU made the channels before SPLIT, ``activation`` is what
    it made, and a becomes the gradient before that ReLU. SCALE 2: nearest upsampling came before the convolution, and
    the gradient is the one before both.
    """
    ENTRIES: tl.constexpr = TAPS if SCALE == 1 else COMPOSITE_TAPS
    p = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    n = FIRST + tl.program_id(1) * N + tl.arange(0, N)
    pixel = tl.minimum(p, pixels - 1)[:, None]
    _, y, x = locate(pixel, height, width)
    output = pixel if SCALE == 1 else pixel_of(pixel, x, width, 0)
    acc = tl.full((PIXELS, N), 0.0, tl.float32)
    for i in tl.range((ENTRIES * PADDED + K - 1) // K):
        k = i * K + tl.arange(0, K)
        tap = k // PADDED
        o = k % PADDED
        real = (tap < ENTRIES) & (o < OUT)
        values = output_gradients(
            grad_ptr, output, y, x, tap, o, real, height, width, OUT=OUT, REPLICATE=REPLICATE, SCALE=SCALE
        )
        entry = (o * (ENTRIES * CHANNELS) + tap * CHANNELS)[:, None] + n[None, :]
        weight = tl.load(weight_ptr + entry, mask=real[:, None] & (n < LAST)[None, :], other=0)
        acc = tl.dot(values, weight, acc, input_precision=PRECISION)
    image, _, _ = locate(pixel, height, width)  # not before the loop: ptxas would spill (sm_100)
    written = (p < pixels)[:, None]
    channel = n.to(tl.int64)[None, :]
    of_a = written & ((n < SPLIT) & (n < LAST))[None, :]
    of_b = written & ((n >= SPLIT) & (n < LAST))[None, :]
    if activation is not None:
        dead = tl.load(activation.pointer + offset(activation, image, y, x) + channel, mask=of_a, other=0) <= 0
        acc = tl.where(dead & (channel < SPLIT), 0, acc)
    if a is not None:
        at = offset(a, image, y, x) + channel * a.channel
        tl.store(a.pointer + at, acc.to(a.pointer.dtype.element_ty), mask=of_a)
    if b is not None:
        at = offset(b, image, y, x) + (channel - SPLIT) * b.channel
        tl.store(b.pointer + at, acc.to(b.pointer.dtype.element_ty), mask=of_b)


@triton.jit(do_not_specialize=["pixels", "share", "height", "width"])
def weight_gradient(
    grad_ptr: tl.tensor,  # (batch, height, width, OUT)
    a: Map,
    b: Map | None,
    partial_ptr: tl.tensor,  # (shares, OUT, 3, 3, A + B), of the composite weights (shares, OUT, 4, 4, A)
    pixels: tl.tensor,
    share: tl.tensor,  # pixels that one program sums
    height: tl.tensor,
    width: tl.tensor,
    A: tl.constexpr,
    B: tl.constexpr,
    OUT: tl.constexpr,
    REPLICATE: tl.constexpr,
    UPSAMPLE: tl.constexpr,
    PADDED: tl.constexpr,
    PRECISION: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    PIXELS: tl.constexpr,
) -> None:
    """The gradient of a convolution's weight, from one share of the pixels, in their order.

    UPSAMPLE: the convolution was one of ``a`` upsampled. "nearest": the gradient is that of the composite weights, the
    pixels are those before the upsampling, and a program works on one phase.
    """
    PHASES: tl.constexpr = 4 if UPSAMPLE == "nearest" else 1
    AS_READ: tl.constexpr = None if PHASES == 4 else UPSAMPLE
    SIDE: tl.constexpr = 2 if PHASES == 4 else 3
    ENTRIES: tl.constexpr = COMPOSITE_TAPS if PHASES == 4 else TAPS
    n = tl.program_id(0) * N + tl.arange(0, N)
    o = tl.program_id(1) * M + tl.arange(0, M)
    part = tl.program_id(2) // PHASES
    phase = tl.program_id(2) % PHASES
    tap = n // PADDED
    channel = n % PADDED
    of_weight = composite_tap(tap, phase) if PHASES == 4 else tap
    real = (tap < SIDE * SIDE) & (channel < A + B)
    acc = tl.full((M, N), 0.0, tl.float32)
    end = tl.minimum((part + 1) * share, pixels)
    for begin in tl.range(part * share, end, PIXELS):
        p = begin + tl.arange(0, PIXELS)
        image, y, x = locate(tl.minimum(p, pixels - 1), height, width)
        row = y[:, None] + (tap // SIDE - 1 + phase // 2)[None, :]
        col = x[:, None] + (tap % SIDE - 1 + phase % 2)[None, :]
        inside = (p < end)[:, None] & real[None, :]
        values = joined_channels(a, b, image[:, None], row, col, channel, inside, height, width, A, REPLICATE, AS_READ)
        output = pixel_of(p, x, width, phase) if PHASES == 4 else p
        at = output.to(tl.int64)[None, :] * OUT + o[:, None]
        grad = tl.load(grad_ptr + at, mask=(p < end)[None, :] & (o < OUT)[:, None], other=0)
        acc = tl.dot(grad, values, acc, input_precision=PRECISION)
    at = (part.to(tl.int64) * OUT + o[:, None]) * (ENTRIES * (A + B)) + (of_weight * (A + B) + channel)[None, :]
    tl.store(partial_ptr + at, acc, mask=(o < OUT)[:, None] & real[None, :])

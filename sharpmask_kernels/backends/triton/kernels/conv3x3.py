"""3x3 convolutions as implicit matrix products, forward and backward.

Maps have their channels side by side in memory (channels_last, or a slice of it). A map is a pointer and the strides of
its batch, rows and columns in units of ``UNIT`` elements, a number the compiler sees: so it knows how wide it may load.

The contraction runs over k = tap * PADDED + channel. With few channels a step of the matrix unit holds several taps:
4 + 4 channels fill two taps into the 16 that it multiplies at once, instead of leaving half of them empty. What is
still padded: channel counts that are no power of two, 9 taps to whole steps, and outputs, to 8 columns on NVIDIA and 16
on AMD. At the finest level of SharpMask (4 + 4 channels, 2 outputs) that makes 768 products a pixel of the 144 that
are needed. It is the matrix unit all the same: on an H100 it does them in 0.4 to 0.8 clocks of a multiprocessor, where
plain multiply-adds take 1.1 for the 144, and both are less than the 2.2 that the pixel's 32 bytes take from memory. So
one form serves every channel count.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tuning import candidates


@triton.jit
def convolve(
    a_ptr: tl.tensor,
    a_strides: tl.tensor,
    b_ptr: tl.tensor,
    b_strides: tl.tensor,
    weight_ptr: tl.tensor,  # (OUT, 3, 3, A + B)
    image: tl.tensor,
    y: tl.tensor,
    x: tl.tensor,
    n: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    A: tl.constexpr,
    B: tl.constexpr,
    OUT: tl.constexpr,
    A_UNIT: tl.constexpr,
    B_UNIT: tl.constexpr,
    REPLICATE: tl.constexpr,
    PADDED: tl.constexpr,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
    PIXELS: tl.constexpr,
    N: tl.constexpr,
) -> tl.tensor:
    """The convolution of the A + B channels of two maps at pixels (image, y, x) of theirs, outputs n: (PIXELS, N)."""
    acc = tl.full((PIXELS, N), 0.0, tl.float32)
    for i in tl.range((9 * PADDED + K - 1) // K):
        k = i * K + tl.arange(0, K)
        tap = k // PADDED
        channel = k % PADDED
        real = (tap < 9) & (channel < A + B)
        row = y[:, None] + (tap // 3 - 1)[None, :]
        col = x[:, None] + (tap % 3 - 1)[None, :]
        inside = real[None, :] & (row >= -1) & (row <= height) & (col >= -1) & (col <= width)
        if REPLICATE:
            row = tl.minimum(tl.maximum(row, 0), height - 1)
            col = tl.minimum(tl.maximum(col, 0), width - 1)
        else:
            inside = inside & (row >= 0) & (row < height) & (col >= 0) & (col < width)
        far = row.to(tl.int64)
        pixel = (image * a_strides[0] + far * a_strides[1] + col * a_strides[2]) * A_UNIT
        values = tl.load(a_ptr + pixel + channel[None, :], mask=inside & (channel < A)[None, :], other=0)
        if B > 0:
            pixel = (image * b_strides[0] + far * b_strides[1] + col * b_strides[2]) * B_UNIT
            of_b = inside & (channel >= A)[None, :]
            values += tl.load(b_ptr + pixel + (channel - A)[None, :], mask=of_b, other=0)
        entry = n[None, :] * (9 * (A + B)) + (tap * (A + B) + channel)[:, None]
        weight = tl.load(weight_ptr + entry, mask=real[:, None] & (n < OUT)[None, :], other=0)
        acc = tl.dot(values, weight, acc, input_precision=PRECISION)
    return acc


@triton.autotune(
    candidates((64, 4, 3), (64, 4, 4), (128, 8, 3), interpreted=64),
    key=["CHANNELS", "OUT", "REPLICATE"],
)
@triton.jit(do_not_specialize=["pixels", "height", "width"])
def conv_relu(
    map_ptr: tl.tensor,
    map_strides: tl.tensor,
    weight_ptr: tl.tensor,  # (OUT, 3, 3, CHANNELS)
    bias_ptr: tl.tensor,
    out_ptr: tl.tensor,
    out_strides: tl.tensor,  # batch, channel, row, column
    pixels: tl.tensor,  # of all images
    height: tl.tensor,
    width: tl.tensor,
    CHANNELS: tl.constexpr,
    OUT: tl.constexpr,
    MAP_UNIT: tl.constexpr,
    OUT_UNIT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    REPLICATE: tl.constexpr,
    PADDED: tl.constexpr,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
    N: tl.constexpr,
    PIXELS: tl.constexpr,
) -> None:
    """ReLU of a convolution of one map."""
    p = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    n = tl.program_id(1) * N + tl.arange(0, N)
    near = tl.minimum(p, pixels - 1)
    x = near % width
    y = near // width % height
    image = (near // width // height).to(tl.int64)
    acc = convolve(
        map_ptr,
        map_strides,
        map_ptr,
        map_strides,
        weight_ptr,
        image[:, None],
        y,
        x,
        n,
        height,
        width,
        A=CHANNELS,
        B=0,
        OUT=OUT,
        A_UNIT=MAP_UNIT,
        B_UNIT=MAP_UNIT,
        REPLICATE=REPLICATE,
        PADDED=PADDED,
        K=K,
        PRECISION=PRECISION,
        PIXELS=PIXELS,
        N=N,
    )
    if HAS_BIAS:
        acc += tl.load(bias_ptr + n, mask=n < OUT, other=0).to(tl.float32)[None, :]
    acc = tl.where(acc <= 0, 0, acc)  # and not a maximum, which may drop NaN
    pixel = (image * out_strides[0] + y.to(tl.int64) * out_strides[2] + x * out_strides[3]) * OUT_UNIT
    target = pixel[:, None] + n.to(tl.int64)[None, :] * out_strides[1]
    tl.store(out_ptr + target, acc.to(out_ptr.dtype.element_ty), mask=(p < pixels)[:, None] & (n < OUT)[None, :])


@triton.autotune(
    candidates((64, 4, 3), (128, 8, 2), interpreted=64),
    key=["CHANNELS", "FIRST", "LAST", "OUT", "REPLICATE"],
)
@triton.jit(do_not_specialize=["pixels", "height", "width"])
def input_gradient(
    grad_ptr: tl.tensor,  # (batch, height, width, OUT)
    weight_ptr: tl.tensor,  # (OUT, 3, 3, CHANNELS)
    a_ptr: tl.tensor,
    a_strides: tl.tensor,  # batch, channel, row, column
    b_ptr: tl.tensor,
    b_strides: tl.tensor,
    relu_ptr: tl.tensor,
    relu_strides: tl.tensor,
    pixels: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    CHANNELS: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    SPLIT: tl.constexpr,
    OUT: tl.constexpr,
    A_UNIT: tl.constexpr,
    B_UNIT: tl.constexpr,
    RELU_UNIT: tl.constexpr,
    RELU: tl.constexpr,
    REPLICATE: tl.constexpr,
    PADDED: tl.constexpr,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
    N: tl.constexpr,
    PIXELS: tl.constexpr,
) -> None:
    """The gradient of channels FIRST .. LAST of a convolution's input: those before SPLIT go to a, the others to b.

    Each pixel gathers from the outputs it went into. With RELU, a is the gradient before the ReLU that made ``relu``.
    """
    p = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    n = FIRST + tl.program_id(1) * N + tl.arange(0, N)
    near = tl.minimum(p, pixels - 1)[:, None]
    x = near % width
    y = near // width % height
    acc = tl.full((PIXELS, N), 0.0, tl.float32)
    for i in tl.range((9 * PADDED + K - 1) // K):
        k = i * K + tl.arange(0, K)
        tap = k // PADDED
        o = k % PADDED
        real = (tap < 9) & (o < OUT)
        # How far down and to the right of the pixel the output is that it went into by this tap.
        down = (1 - tap // 3)[None, :]
        right = (1 - tap % 3)[None, :]
        row_inside = real[None, :] & (y + down >= 0) & (y + down < height)
        col_inside = (x + right >= 0) & (x + right < width)
        here = (near + down * width + right).to(tl.int64) * OUT + o[None, :]
        values = tl.load(grad_ptr + here, mask=row_inside & col_inside, other=0)
        if REPLICATE:
            # The border also went into outputs on itself, by the taps that looked beyond it.
            row_edge = real[None, :] & (((down == 1) & (y == 0)) | ((down == -1) & (y == height - 1)))
            col_edge = ((right == 1) & (x == 0)) | ((right == -1) & (x == width - 1))
            on_row = (near + right).to(tl.int64) * OUT + o[None, :]
            on_col = (near + down * width).to(tl.int64) * OUT + o[None, :]
            on_both = near.to(tl.int64) * OUT + o[None, :]
            total = values.to(tl.float32)
            total += tl.load(grad_ptr + on_row, mask=row_edge & col_inside, other=0).to(tl.float32)
            total += tl.load(grad_ptr + on_col, mask=row_inside & col_edge, other=0).to(tl.float32)
            total += tl.load(grad_ptr + on_both, mask=row_edge & col_edge, other=0).to(tl.float32)
            values = total.to(values.dtype)
        entry = (o * (9 * CHANNELS) + tap * CHANNELS)[:, None] + n[None, :]
        weight = tl.load(weight_ptr + entry, mask=real[:, None] & (n < LAST)[None, :], other=0)
        acc = tl.dot(values, weight, acc, input_precision=PRECISION)
    written = (p < pixels)[:, None]
    channel = n.to(tl.int64)[None, :]
    of_a = written & ((n < SPLIT) & (n < LAST))[None, :]
    image = (near // width // height).to(tl.int64)
    far = y.to(tl.int64)
    if RELU:
        at = (image * relu_strides[0] + far * relu_strides[1] + x * relu_strides[2]) * RELU_UNIT + channel
        dead = tl.load(relu_ptr + at, mask=of_a, other=0) <= 0
        acc = tl.where(dead & (channel < SPLIT), 0, acc)
    if FIRST < SPLIT:
        at = (image * a_strides[0] + far * a_strides[2] + x * a_strides[3]) * A_UNIT + channel * a_strides[1]
        tl.store(a_ptr + at, acc.to(a_ptr.dtype.element_ty), mask=of_a)
    if LAST > SPLIT:
        at = (image * b_strides[0] + far * b_strides[2] + x * b_strides[3]) * B_UNIT + (channel - SPLIT) * b_strides[1]
        tl.store(b_ptr + at, acc.to(b_ptr.dtype.element_ty), mask=written & ((n >= SPLIT) & (n < LAST))[None, :])


@triton.jit(do_not_specialize=["pixels", "share", "height", "width"])
def weight_gradient(
    grad_ptr: tl.tensor,  # (batch, height, width, OUT)
    a_ptr: tl.tensor,
    a_strides: tl.tensor,  # batch, row, column
    b_ptr: tl.tensor,
    b_strides: tl.tensor,
    partial_ptr: tl.tensor,  # (shares, OUT, 3, 3, A + B)
    pixels: tl.tensor,
    share: tl.tensor,  # pixels that one program sums
    height: tl.tensor,
    width: tl.tensor,
    A: tl.constexpr,
    B: tl.constexpr,
    OUT: tl.constexpr,
    A_UNIT: tl.constexpr,
    B_UNIT: tl.constexpr,
    REPLICATE: tl.constexpr,
    PADDED: tl.constexpr,
    PRECISION: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    PIXELS: tl.constexpr,
) -> None:
    """The gradient of a convolution's weight, from one share of the pixels, in their order."""
    n = tl.program_id(0) * N + tl.arange(0, N)
    o = tl.program_id(1) * M + tl.arange(0, M)
    part = tl.program_id(2)
    tap = n // PADDED
    channel = n % PADDED
    real = (tap < 9) & (channel < A + B)
    acc = tl.full((M, N), 0.0, tl.float32)
    end = tl.minimum((part + 1) * share, pixels)
    for begin in tl.range(part * share, end, PIXELS):
        p = begin + tl.arange(0, PIXELS)
        near = tl.minimum(p, pixels - 1)
        image = (near // width // height).to(tl.int64)[:, None]
        row = (near // width % height)[:, None] + (tap // 3 - 1)[None, :]
        col = (near % width)[:, None] + (tap % 3 - 1)[None, :]
        inside = (p < end)[:, None] & real[None, :]
        if REPLICATE:
            row = tl.minimum(tl.maximum(row, 0), height - 1)
            col = tl.minimum(tl.maximum(col, 0), width - 1)
        else:
            inside = inside & (row >= 0) & (row < height) & (col >= 0) & (col < width)
        far = row.to(tl.int64)
        pixel = (image * a_strides[0] + far * a_strides[1] + col * a_strides[2]) * A_UNIT
        values = tl.load(a_ptr + pixel + channel[None, :], mask=inside & (channel < A)[None, :], other=0)
        if B > 0:
            pixel = (image * b_strides[0] + far * b_strides[1] + col * b_strides[2]) * B_UNIT
            of_b = inside & (channel >= A)[None, :]
            values += tl.load(b_ptr + pixel + (channel - A)[None, :], mask=of_b, other=0)
        at = p.to(tl.int64)[None, :] * OUT + o[:, None]
        grad = tl.load(grad_ptr + at, mask=(p < end)[None, :] & (o < OUT)[:, None], other=0)
        acc = tl.dot(grad, values, acc, input_precision=PRECISION)
    at = (part.to(tl.int64) * OUT + o[:, None]) * (9 * (A + B)) + (tap * (A + B) + channel)[None, :]
    tl.store(partial_ptr + at, acc, mask=(o < OUT)[:, None] & real[None, :])

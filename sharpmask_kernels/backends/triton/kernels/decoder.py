"""upsample_merge and upsample_add: upsampling by two inside what follows it, and the way back.

The upsampled map and the concatenation are never made. A program of ``forward`` multiplies the taps of the mask and
then those of the skip into the same sums. With nearest upsampling it works on one phase of the pixels at a time (see
phases.py): 4 products a channel of the mask where the upsampled map would take 9. A program takes one phase after the
other, whose taps meet in the L1 cache; where the maps are so small that the programs would not fill the machine, four
programs share the phases. The order of a sum is the same.

The bilinear forms take all 9 products, and each value that a tap sees is made of four as it is loaded: four loads from
L1 and about ten instructions for a product with N outputs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .conv3x3 import TAPS, accumulate, add_bias, relu
from .maps import Map, cells_and_channels, locate, offset, upsampled, upsampled_gradient
from .phases import COMPOSITE_TAPS

LEAK = tl.constexpr(0.01)
"""The slope of leaky ReLU below 0."""


@triton.jit
def activate(x: tl.tensor, ACTIVATION: tl.constexpr) -> tl.tensor:
    if ACTIVATION == "relu":
        x = relu(x)
    elif ACTIVATION == "elu":
        x = tl.where(x > 0, x, tl.exp(x) - 1)
    elif ACTIVATION == "leaky_relu":
        x = tl.where(x > 0, x, LEAK * x)
    elif ACTIVATION == "silu":
        x = x / (1 + tl.exp(-x))
    return x


@triton.jit
def compose(
    weight_ptr: tl.tensor,  # (OUT, 3, 3, CHANNELS)
    out_ptr: tl.tensor,  # (OUT, 4, 4, A)
    elements: tl.tensor,  # of the result
    FIRST: tl.constexpr,
    CHANNELS: tl.constexpr,
    A: tl.constexpr,
    SIZE: tl.constexpr,
) -> None:
    """The composite weights of A channels from FIRST on: a sum each of the taps that fall on the same cell."""
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    channel = i % A
    tap = i // A % COMPOSITE_TAPS
    o = i // A // COMPOSITE_TAPS
    total = tl.full((SIZE,), 0.0, tl.float32)
    for down in tl.static_range(2):
        for right in tl.static_range(2):
            row = 2 - tap // 4 + down
            col = 2 - tap % 4 + right
            real = (i < elements) & (row >= 0) & (row < 3) & (col >= 0) & (col < 3)
            at = (o * TAPS + row * 3 + col) * CHANNELS + FIRST + channel
            total += tl.load(weight_ptr + at, mask=real, other=0).to(tl.float32)
    tl.store(out_ptr + i, total.to(out_ptr.dtype.element_ty), mask=i < elements)


@triton.jit(do_not_specialize=["pixels", "height", "width"])
def forward(
    a: Map,
    b: Map | None,  # twice as high and wide
    weight_ptr: tl.tensor,  # (OUT, 3, 3, A + B)
    composite_ptr: tl.tensor | None,  # (OUT, 4, 4, A) if UPSAMPLE is "nearest"
    bias_ptr: tl.tensor | None,
    out: Map,
    pixels: tl.tensor,  # of all images: of the mask if UPSAMPLE is "nearest", else of the result
    height: tl.tensor,
    width: tl.tensor,
    A: tl.constexpr,
    B: tl.constexpr,
    FIRST_A: tl.constexpr,
    FIRST_B: tl.constexpr,
    OUT: tl.constexpr,
    UPSAMPLE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    REPLICATE: tl.constexpr,
    PADDED_A: tl.constexpr,
    PADDED_B: tl.constexpr,
    K_A: tl.constexpr,
    K_B: tl.constexpr,
    PRECISION: tl.constexpr,
    EACH: tl.constexpr,
    N: tl.constexpr,
    PIXELS: tl.constexpr,
) -> None:
    """The activation of a convolution of ``a`` upsampled and ``b``, whose channels are the weight's from FIRST_A and
    FIRST_B on. ``height`` and ``width`` are those of ``a``. A program works on EACH phases, of four if UPSAMPLE is
    "nearest", else of one."""
    n = tl.program_id(1) * N + tl.arange(0, N)
    PROGRAMS: tl.constexpr = 4 // EACH if UPSAMPLE == "nearest" else 1
    p = tl.program_id(0) // PROGRAMS * PIXELS + tl.arange(0, PIXELS)
    for i in tl.range(EACH):
        acc = tl.full((PIXELS, N), 0.0, tl.float32)
        if UPSAMPLE == "nearest":
            phase = tl.program_id(0) % PROGRAMS * EACH + i
            image, y, x = locate(tl.minimum(p, pixels - 1), height, width)
            row = 2 * y + phase // 2
            col = 2 * x + phase % 2
            acc = accumulate(
                acc, a, None, composite_ptr, phase, image[:, None], y + phase // 2, x + phase % 2, n, height, width,
                A, 0, 0, A, OUT, REPLICATE, PADDED_A, K_A, PRECISION
            )  # fmt: skip
        else:
            image, row, col = locate(tl.minimum(p, pixels - 1), 2 * height, 2 * width)
            acc = accumulate(
                acc, a, None, weight_ptr, None, image[:, None], row, col, n, 2 * height, 2 * width,
                A, 0, FIRST_A, A + B, OUT, REPLICATE, PADDED_A, K_A, PRECISION, UPSAMPLE
            )  # fmt: skip
        if b is not None:
            acc = accumulate(
                acc, b, None, weight_ptr, None, image[:, None], row, col, n, 2 * height, 2 * width,
                B, 0, FIRST_B, A + B, OUT, REPLICATE, PADDED_B, K_B, PRECISION
            )  # fmt: skip
        acc = activate(add_bias(acc, bias_ptr, n, OUT), ACTIVATION)
        at = offset(out, image, row, col)[:, None] + n.to(tl.int64)[None, :] * out.channel
        written = (p < pixels)[:, None] & (n < OUT)[None, :]
        tl.store(out.pointer + at, acc.to(out.pointer.dtype.element_ty), mask=written)


@triton.jit
def place(
    height: tl.tensor,
    width: tl.tensor,
    pixels: tl.tensor,
    C: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    CELLS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Image, row, column and channel of the elements of a program's tile, and which of them there are."""
    channel_tiles: tl.constexpr = (C + CHANNELS - 1) // CHANNELS
    cell, channel = cells_and_channels(CELLS, CHANNELS, CHANNELS_LAST)
    cell += tl.program_id(0) // channel_tiles * CELLS
    channel += tl.program_id(0) % channel_tiles * CHANNELS
    image, y, x = locate(cell, height, width)
    return image, y, x, channel.to(tl.int64), (cell < pixels) & (channel < C)


@triton.jit(do_not_specialize=["pixels", "height", "width"])
def add(
    mask: Map,
    lateral: Map,
    out: Map,
    pixels: tl.tensor,  # of all images of the result
    height: tl.tensor,  # of the mask
    width: tl.tensor,
    C: tl.constexpr,
    UPSAMPLE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    CELLS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    """The activation of ``mask``, upsampled, plus ``lateral``."""
    image, row, col, channel, real = place(2 * height, 2 * width, pixels, C, CHANNELS_LAST, CELLS, CHANNELS)
    values = upsampled(mask, image, row, col, channel * mask.channel, real, height, width, UPSAMPLE)
    at = offset(lateral, image, row, col) + channel * lateral.channel
    values += tl.load(lateral.pointer + at, mask=real, other=0).to(tl.float32)
    at = offset(out, image, row, col) + channel * out.channel
    tl.store(out.pointer + at, activate(values, ACTIVATION).to(out.pointer.dtype.element_ty), mask=real)


@triton.jit(do_not_specialize=["pixels", "height", "width"])
def activation_gradient(
    grad: Map,
    result: Map,
    out: Map,
    pixels: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    C: tl.constexpr,
    ACTIVATION: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    CELLS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    """The gradient before an activation, from the one behind it and from its ``result``."""
    image, row, col, channel, real = place(height, width, pixels, C, CHANNELS_LAST, CELLS, CHANNELS)
    at = offset(grad, image, row, col) + channel * grad.channel
    values = tl.load(grad.pointer + at, mask=real, other=0).to(tl.float32)
    at = offset(result, image, row, col) + channel * result.channel
    made = tl.load(result.pointer + at, mask=real, other=0).to(tl.float32)
    if ACTIVATION == "relu":
        values = tl.where(made <= 0, 0, values)
    elif ACTIVATION == "elu":
        values = tl.where(made > 0, values, values * (made + 1))
    else:
        values = tl.where(made > 0, values, values * LEAK)
    at = offset(out, image, row, col) + channel * out.channel
    tl.store(out.pointer + at, values.to(out.pointer.dtype.element_ty), mask=real)


@triton.jit(do_not_specialize=["pixels", "height", "width"])
def upsampling_gradient(
    grad: Map,
    out: Map,
    pixels: tl.tensor,  # of all images of the map that was upsampled
    height: tl.tensor,  # and its size
    width: tl.tensor,
    C: tl.constexpr,
    UPSAMPLE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    CELLS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    """The gradient of a map from the one of the map upsampled."""
    image, y, x, channel, real = place(height, width, pixels, C, CHANNELS_LAST, CELLS, CHANNELS)
    total = upsampled_gradient(grad, image, y, x, channel * grad.channel, real, height, width, UPSAMPLE)
    at = offset(out, image, y, x) + channel * out.channel
    tl.store(out.pointer + at, total.to(out.pointer.dtype.element_ty), mask=real)

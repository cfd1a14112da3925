"""3x3 convolutions of the refinement ops, and their gradients, by Triton kernels.

The kernels read maps whose channels are contiguous (channels_last and slices of it). Maps in PyTorch's contiguous
format are converted first, which is one more pass over each. Outputs in that format are written element by element
instead of 8 or 16 bytes at a time. So channels_last maps are faster, and channels_last weights, which are converted
likewise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import checks, layout
from ..needs import ConvNeeds
from . import tuning
from .device import INTERPRETED
from .launch import FUSED, as_map, as_pixels, power_of_2, tiles

TAPS = 9

MOST_PIXELS = 2**31 - 2**13
"""The kernels count the pixels of a batch in 32 bits, and the last tile may go beyond them."""

MOST_CHANNELS = 64
"""Outputs of one program, and channels that one step of a contraction takes of a tap, at most."""

COLS = 16
"""Columns of a tile of corners: see kernels/upsample.py."""

WEIGHT_PIXELS = 64
"""Pixels of one step of a weight's gradient. Not tuned: it decides the order of the sums."""

LEAST_STEPS = 1 if INTERPRETED else 4
"""Least work of a program that sums a weight's gradient."""

WEIGHT_PROGRAMS = 512
"""About how many programs sum a weight's gradient: a few for each multiprocessor."""


class Convolution(NamedTuple):
    """A 3x3 convolution: weight (outputs, inputs, 3, 3), bias (outputs), "zeros" or "replicate"."""

    weight: Tensor
    bias: Tensor | None
    padding_mode: str

    @property
    def outputs(self) -> int:
        return self.weight.shape[0]

    @property
    def inputs(self) -> int:
        return self.weight.shape[1]

    @property
    def replicate(self) -> bool:
        return self.padding_mode == "replicate"

    def pointers(self) -> tuple[Tensor, Tensor | None]:
        """Weight (outputs, 3, 3, inputs) in memory, and bias, as the kernels read them."""
        weight = self.weight.contiguous(memory_format=torch.channels_last)
        return weight, None if self.bias is None else self.bias.contiguous()


class Contraction(NamedTuple):
    """How the contraction over taps and channels is cut into steps, and how it is multiplied."""

    padded: int
    """Channels of one tap: a power of two, or a multiple of MOST_CHANNELS."""
    step: int
    precision: str

    def constants(self) -> dict[str, Any]:
        return {"PADDED": self.padded, "K": self.step, "PRECISION": self.precision}


def contraction_of(channels: int, dtype: torch.dtype, most_bytes: int) -> Contraction:
    """Over the taps of ``channels``; a step reads at most ``most_bytes`` of a pixel.

    A product in fp32 is three products in tf32 on NVIDIA (error 1e-6) and exact on AMD. One product in tf32 would have
    an error of 5e-4.
    """
    if channels <= MOST_CHANNELS:
        padded = power_of_2(channels, MOST_CHANNELS)
    else:
        padded = tiles(channels, MOST_CHANNELS) * MOST_CHANNELS
    # The least step of the matrix unit is 16; of two channels and more, 32 hold several taps.
    step = min(most_bytes // dtype.itemsize, MOST_CHANNELS if padded >= MOST_CHANNELS else 32 if padded > 1 else 16)
    if INTERPRETED and padded >= 32:
        step = 128  # the interpreter's time grows with the number of steps, not with their size
    return Contraction(padded, step, "ieee" if torch.version.hip else "tf32x3")


def columns_of(count: int, most: int) -> int:
    """Columns of a product: a power of two, no fewer than the matrix unit has."""
    least = 16 if torch.version.hip else 8
    return max(least, power_of_2(count, 32 if INTERPRETED else most))


def pixels_of(maps: Tensor) -> int:
    batch, _, height, width = maps.shape
    if (pixels := batch * height * width) > MOST_PIXELS:
        raise checks.refusal("maps", f"of at most {MOST_PIXELS} pixels in all on backend 'triton'", pixels)
    return pixels


def formatted(x: Tensor, memory_format: torch.memory_format) -> Tensor:
    """``x`` in the memory format, copied if it is not."""
    out = layout.empty(x.shape, x, memory_format)
    return x if x.stride() == out.stride() else out.copy_(x)


def conv(x: Tensor, convolution: Convolution, memory_format: torch.memory_format, relu: bool) -> Tensor:
    """conv(x), or ReLU(conv(x))."""
    from .kernels import conv3x3 as kernels

    pixels, outputs = pixels_of(x), convolution.outputs
    batch, channels, height, width = x.shape
    out = layout.empty((batch, outputs, height, width), x, memory_format)
    if pixels == 0:
        return out
    columns = columns_of(outputs, MOST_CHANNELS)
    chosen = tuning.chosen("conv3x3.forward", x, channels, outputs)
    kernels.forward[(tiles(pixels, chosen["PIXELS"]), tiles(outputs, columns))](
        as_pixels(x),
        *convolution.pointers(),
        as_map(out),
        pixels,
        height,
        width,
        CHANNELS=channels,
        OUT=outputs,
        RELU=relu,
        REPLICATE=convolution.replicate,
        N=columns,
        **contraction_of(channels, x.dtype, 128).constants(),
        **chosen,
        **FUSED,
    )
    return out


def conv_relu_upsample(
    maps: Sequence[Tensor],
    addend: Tensor | None,
    convolution: Convolution,
    upsample: str,
    save: bool,
    memory_format: torch.memory_format,
) -> tuple[Tensor, Tensor]:
    """upsample2x(ReLU(conv of one or two joined ``maps`` + addend)), and the bits of the activations if ``save``."""
    from .kernels import upsample as kernels

    pixels, outputs = pixels_of(maps[0]), convolution.outputs
    batch, _, height, width = maps[0].shape
    out = layout.empty((batch, outputs, 2 * height, 2 * width), convolution.weight, memory_format)
    active = out.new_empty((batch, outputs, height, tiles(width, 8)) if save else (0,), dtype=torch.uint8)
    if pixels == 0:
        return out, active
    columns = columns_of(outputs, MOST_CHANNELS)
    halo = int(upsample == "bilinear")
    chosen = tuning.chosen("upsample.forward", out, convolution.inputs, outputs)
    rows = chosen["PIXELS"] // (COLS + halo) - halo
    programs = batch * tiles(height + halo, rows) * tiles(width + halo, COLS)
    a, b = maps if len(maps) == 2 else (maps[0], None)
    kernels.forward[(programs, tiles(outputs, columns))](
        as_pixels(a),
        None if b is None else as_pixels(b),
        *convolution.pointers(),
        None if addend is None else as_pixels(addend),
        as_map(out),
        active if save else None,
        height,
        width,
        A=a.shape[1],
        B=0 if b is None else b.shape[1],
        OUT=outputs,
        BILINEAR=upsample == "bilinear",
        REPLICATE=convolution.replicate,
        COLS=COLS,
        N=columns,
        **contraction_of(convolution.inputs, out.dtype, 64).constants(),
        **chosen,
        **FUSED,
    )
    return out, active


def before_relu(grad: Tensor, active: Tensor, upsample: str) -> Tensor:
    """The gradient before the ReLU, (batch, outputs, height, width) in channels_last, from that of the output."""
    from .kernels import upsample as kernels

    batch, outputs, height, width = grad.shape[0], grad.shape[1], grad.shape[2] // 2, grad.shape[3] // 2
    out = layout.empty((batch, outputs, height, width), grad, torch.channels_last)
    pixels = batch * height * width
    if pixels == 0:
        return out
    columns = power_of_2(outputs, 16 if INTERPRETED else MOST_CHANNELS)
    tile = (128 if INTERPRETED else 1024) // columns  # eight values a thread
    kernels.backward[(tiles(pixels, tile), tiles(outputs, columns))](
        as_pixels(grad),
        active.contiguous(),
        out,
        pixels,
        height,
        width,
        OUT=outputs,
        UPSAMPLE=upsample,
        N=columns,
        PIXELS=tile,
        **FUSED,
    )
    return out


def input_gradients(
    grad: Tensor,
    convolution: Convolution,
    channels: Sequence[int],
    channels_last: bool,
    needs: Sequence[bool],
    activation: Tensor | None = None,
    scale: int = 1,
) -> list[Tensor | None]:
    """The gradients of a convolution's inputs: one map, or two that were joined, with their ``channels``.

    ``activation`` is the first input if a ReLU made it; its gradient is then the one before that ReLU. ``scale`` 2: the
    inputs were upsampled ("nearest") before it, and the weight is the composite one, (outputs, inputs, 4, 4).
    """
    from .kernels import conv3x3 as kernels

    batch, outputs = grad.shape[:2]
    height, width = grad.shape[2] // scale, grad.shape[3] // scale
    gradients = [
        layout.empty((batch, count, height, width), grad, layout.chosen(channels_last)) if need else None
        for count, need in zip(channels, needs, strict=True)
    ]
    pixels = batch * height * width
    if pixels == 0 or not any(needs):
        return gradients
    a, b = (None if g is None else as_map(g) for g in (*gradients, None)[:2])
    first = 0 if a else channels[0]
    last = sum(channels) if b else channels[0]
    most = 256 // grad.dtype.itemsize
    columns = columns_of(last - first, most)
    # The widest product takes the registers it needs. By default ptxas would spill some rather than go beyond 96
    # (sm_100).
    registers = {"maxnreg": 255} if columns == most and not torch.version.hip else {}
    weight, _ = convolution.pointers()
    chosen = tuning.chosen("conv3x3.input_gradient", grad, outputs, last - first)
    kernels.input_gradient[(tiles(pixels, chosen["PIXELS"]), tiles(last - first, columns))](
        grad,
        weight,
        a,
        b,
        None if activation is None else as_pixels(activation),
        pixels,
        height,
        width,
        CHANNELS=sum(channels),
        FIRST=first,
        LAST=last,
        SPLIT=channels[0],
        OUT=outputs,
        REPLICATE=convolution.replicate,
        SCALE=scale,
        N=columns,
        **contraction_of(outputs, grad.dtype, 64).constants(),
        **chosen,
        **FUSED,
        **registers,
    )
    return gradients


def weight_gradient(grad: Tensor, maps: Sequence[Tensor], padding_mode: str, channels_last: bool) -> Tensor:
    """The gradient of a convolution's weight."""
    total = weight_sums(grad, maps, padding_mode)
    return layout.empty(total.shape, grad, layout.chosen(channels_last)).copy_(total)


def weight_sums(grad: Tensor, maps: Sequence[Tensor], padding_mode: str, upsample: str | None = None) -> Tensor:
    """The gradient of a convolution's weight in fp32, (outputs, inputs, 3, 3) in channels_last.

    Programs sum shares of the pixels, then these are summed in order. ``upsample``: the convolution was one of the
    first map upsampled; if that is "nearest", the gradient is that of the composite weights, (outputs, inputs, 4, 4).
    """
    from .kernels import conv3x3 as kernels

    phases, taps, side = (4, 4, 4) if upsample == "nearest" else (1, TAPS, 3)
    batch, outputs, height, width = grad.shape
    height, width = (height // 2, width // 2) if phases == 4 else (height, width)
    channels = sum(m.shape[1] for m in maps)
    pixels = batch * height * width
    if pixels == 0:
        return grad.new_zeros((outputs, side, side, channels), dtype=torch.float32).permute(0, 3, 1, 2)
    contraction = contraction_of(channels, grad.dtype, 128)
    # Narrower where two maps are loaded: they take registers, and AMD has 64 KB of shared memory.
    columns = columns_of(taps * contraction.padded, 128 if len(maps) == 1 and channels >= MOST_CHANNELS else 64)
    rows = max(16, power_of_2(outputs, MOST_CHANNELS))  # 16 are the least that the matrix unit multiplies
    blocks = tiles(taps * contraction.padded, columns), tiles(outputs, rows)
    shares = max(1, min(WEIGHT_PROGRAMS // (blocks[0] * blocks[1] * phases), pixels // (LEAST_STEPS * WEIGHT_PIXELS)))
    share = tiles(tiles(pixels, shares), WEIGHT_PIXELS) * WEIGHT_PIXELS
    shares = tiles(pixels, share)
    partial = torch.empty((shares, outputs, side, side, channels), dtype=torch.float32, device=grad.device)
    a, b = maps if len(maps) == 2 else (maps[0], None)
    grid = (*blocks, shares * phases)
    kernels.weight_gradient[grid](
        grad,
        as_pixels(a),
        None if b is None else as_pixels(b),
        partial,
        pixels,
        share,
        height,
        width,
        A=a.shape[1],
        B=0 if b is None else b.shape[1],
        OUT=outputs,
        REPLICATE=padding_mode == "replicate",
        UPSAMPLE=upsample,
        PADDED=contraction.padded,
        PRECISION=contraction.precision,
        M=rows,
        N=columns,
        PIXELS=WEIGHT_PIXELS,
        num_warps=4 if torch.version.hip else 8,  # 256 lanes either way
        num_stages=2,
        **FUSED,
    )
    return partial.sum(0).permute(0, 3, 1, 2)


def bias_gradient(grad: Tensor) -> Tensor:
    return grad.permute(0, 2, 3, 1).flatten(0, 2).sum(0, dtype=torch.float32).to(grad.dtype)


def convolution_gradients(
    grad: Tensor, x: Tensor, convolution: Convolution, channels_last: bool, needs: ConvNeeds, relu: bool = False
) -> list[Tensor | None]:
    """Gradients of x, weight and bias from that of a convolution of x, in channels_last.

    ``relu``: a ReLU made x. Its gradient is then the one before this ReLU, and in channels_last.
    """
    activation = x if relu else None
    return [
        *input_gradients(grad, convolution, (x.shape[1],), channels_last or relu, (needs.input,), activation),
        weight_gradient(grad, (x,), convolution.padding_mode, channels_last) if needs.weight else None,
        bias_gradient(grad) if needs.bias else None,
    ]

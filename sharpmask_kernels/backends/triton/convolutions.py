"""Convolutions and their gradients by Triton kernels, as the refinement ops are made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ... import checks, layout
from .device import INTERPRETED
from .launch import FUSED, power_of_2, strides, tiles

MOST_PIXELS = 2**31 - 2**13
"""The kernels count the pixels of a batch in 32 bits, and the last tile may go beyond them."""


def _pixels(maps: Tensor) -> int:
    batch, _, height, width = maps.shape
    if (pixels := batch * height * width) > MOST_PIXELS:
        raise checks.refusal("maps", f"of at most {MOST_PIXELS} pixels in all on backend 'triton'", pixels)
    return pixels


def side_by_side(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous(memory_format=torch.channels_last)


def _map(x: Tensor) -> tuple[tuple[int, int, int], int]:
    (batch, _, row, col), unit = strides(x)
    return (batch, row, col), unit


def _padded(channels: int) -> int:
    """Channels of one tap in a contraction: a power of two, or a multiple of a whole step."""
    return power_of_2(channels, 64) if channels <= 64 else tiles(channels, 64) * 64


def _contraction(channels: int, dtype: torch.dtype, most: int = 128) -> dict[str, Any]:
    """How a contraction over nine taps of ``channels`` is cut into steps, of ``most`` bytes a pixel, and multiplied.

    fp32 products are those of three tf32 ones on NVIDIA (1e-6), exact on AMD; plain tf32 would be off by 5e-4.
    """
    padded = _padded(channels)
    step = min(most // dtype.itemsize, 64 if padded >= 64 else 32 if padded > 1 else 16)
    if INTERPRETED and padded >= 32:
        step = 128  # its time goes by the number of steps, not by their size
    return {"PADDED": padded, "K": step, "PRECISION": "ieee" if torch.version.hip else "tf32x3"}


def _columns(count: int, most: int) -> int:
    """Of a product: at least what the matrix unit has."""
    least = 16 if torch.version.hip else 8
    return max(least, power_of_2(count, 32 if INTERPRETED else most))


def formatted(x: Tensor, memory_format: torch.memory_format) -> Tensor:
    out = layout.empty(x.shape, x, memory_format)
    return x if x.stride() == out.stride() else out.copy_(x)


def up2(
    maps: Sequence[Tensor],
    addend: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    upsample: str,
    padding_mode: str,
    save: bool,
    memory_format: torch.memory_format,
) -> tuple[Tensor, Tensor]:
    """up2(ReLU(conv of the joined ``maps``, one or two, + addend)) and the bits of the activations."""
    from .kernels import upsample as kernels

    pixels = _pixels(maps[0])
    batch, _, height, width = maps[0].shape
    outputs = weight.shape[0]
    out = layout.empty((batch, outputs, 2 * height, 2 * width), weight, memory_format)
    shape = (batch, outputs, height, tiles(width, 8)) if save else (0,)
    active = out.new_empty(shape, dtype=torch.uint8)
    if pixels == 0:
        return out, active
    a, b = (side_by_side(m) for m in (maps[0], maps[-1]))
    weight = weight.contiguous(memory_format=torch.channels_last)
    addend = None if addend is None else side_by_side(addend)
    (a_strides, a_unit), (b_strides, b_unit) = _map(a), _map(b)
    addend_strides, addend_unit = _map(a if addend is None else addend)
    out_strides, out_unit = strides(out)
    columns = _columns(outputs, 64)
    cols = 16
    halo = int(upsample == "bilinear")

    def grid(meta: dict[str, Any]) -> tuple[int, int]:
        rows = meta["PIXELS"] // (cols + halo) - halo
        return batch * tiles(height + halo, rows) * tiles(width + halo, cols), tiles(outputs, columns)

    kernels.forward[grid](
        a,
        a_strides,
        b,
        b_strides,
        weight,
        weight if bias is None else bias.contiguous(),
        a if addend is None else addend,
        addend_strides,
        out,
        out_strides,
        active,
        height,
        width,
        A=a.shape[1],
        B=b.shape[1] if len(maps) == 2 else 0,
        OUT=outputs,
        A_UNIT=a_unit,
        B_UNIT=b_unit,
        ADDEND_UNIT=addend_unit,
        OUT_UNIT=out_unit,
        HAS_BIAS=bias is not None,
        HAS_ADDEND=addend is not None,
        SAVE=save,
        BILINEAR=upsample == "bilinear",
        REPLICATE=padding_mode == "replicate",
        COLS=cols,
        N=columns,
        **_contraction(weight.shape[1], weight.dtype, 64),
        **FUSED,
    )
    return out, active


def before_relu(grad: Tensor, active: Tensor, upsample: str) -> Tensor:
    """The gradient before the ReLU, (batch, outputs, height, width) in channels_last."""
    from .kernels import upsample as kernels

    batch, outputs, height, width = grad.shape[0], grad.shape[1], grad.shape[2] // 2, grad.shape[3] // 2
    out = layout.empty((batch, outputs, height, width), grad, torch.channels_last)
    pixels = batch * height * width
    if pixels == 0:
        return out
    grad = side_by_side(grad)
    grad_strides, unit = _map(grad)
    columns = power_of_2(outputs, 16 if INTERPRETED else 64)
    tile = (128 if INTERPRETED else 1024) // columns  # eight values a thread
    kernels.backward[(tiles(pixels, tile), tiles(outputs, columns))](
        grad,
        grad_strides,
        active.contiguous(),
        out,
        pixels,
        height,
        width,
        OUT=outputs,
        GRAD_UNIT=unit,
        BILINEAR=upsample == "bilinear",
        N=columns,
        PIXELS=tile,
        **FUSED,
    )
    return out


def input_gradients(
    grad: Tensor,
    weight: Tensor,
    channels: Sequence[int],
    padding_mode: str,
    channels_last: bool,
    needs: Sequence[bool],
    relu: Tensor | None = None,
) -> list[Tensor | None]:
    """The gradients of a convolution's inputs: one, or two that were joined. ``relu``: the first was made by a ReLU."""
    from .kernels import conv3x3 as kernels

    batch, outputs, height, width = grad.shape
    gradients = [
        layout.empty((batch, count, height, width), grad, layout.chosen(channels_last)) if need else None
        for count, need in zip(channels, needs, strict=True)
    ]
    wanted = [g for g in gradients if g is not None]
    pixels = batch * height * width
    if pixels == 0 or not wanted:
        return gradients
    first = 0 if needs[0] else channels[0]
    last = sum(channels) if needs[-1] else channels[0]
    most = 256 // grad.dtype.itemsize
    columns = _columns(last - first, most)
    # The widest product takes what it needs: told nothing, ptxas would spill some rather than go beyond 96 (sm_100).
    registers = {"maxnreg": 255} if columns == most and not torch.version.hip else {}
    a, b = wanted[0], wanted[-1]
    (a_strides, a_unit), (b_strides, b_unit) = strides(a), strides(b)
    masked = grad if relu is None else side_by_side(relu)
    relu_strides, relu_unit = _map(masked)
    kernels.input_gradient[lambda meta: (tiles(pixels, meta["PIXELS"]), tiles(last - first, columns))](
        grad,
        weight.contiguous(memory_format=torch.channels_last),
        a,
        a_strides,
        b,
        b_strides,
        masked,
        relu_strides,
        pixels,
        height,
        width,
        CHANNELS=sum(channels),
        FIRST=first,
        LAST=last,
        SPLIT=channels[0],
        OUT=outputs,
        A_UNIT=a_unit,
        B_UNIT=b_unit,
        RELU_UNIT=relu_unit,
        RELU=relu is not None,
        REPLICATE=padding_mode == "replicate",
        N=columns,
        **_contraction(outputs, grad.dtype, 64),
        **FUSED,
        **registers,
    )
    return gradients


PIXELS = 64
"""Of one step of a weight's gradient. Not tuned: it decides the order of the sums."""


STEPS = 1 if INTERPRETED else 4
"""Least work of a program that sums a weight's gradient."""


def weight_gradient(grad: Tensor, maps: Sequence[Tensor], padding_mode: str, channels_last: bool) -> Tensor:
    """Shares of the pixels summed side by side, then the shares in their order."""
    from .kernels import conv3x3 as kernels

    batch, outputs, height, width = grad.shape
    channels = sum(m.shape[1] for m in maps)
    out = layout.empty((outputs, channels, 3, 3), grad, layout.chosen(channels_last))
    pixels = batch * height * width
    if pixels == 0:
        return out.zero_()
    a, b = (side_by_side(m) for m in (maps[0], maps[-1]))
    (a_strides, a_unit), (b_strides, b_unit) = _map(a), _map(b)
    contraction = _contraction(channels, grad.dtype)
    # Narrower where two maps are loaded: registers, and 64 KB of shared memory on AMD.
    columns = _columns(9 * contraction["PADDED"], 128 if len(maps) == 1 and channels >= 64 else 64)
    rows = max(16, power_of_2(outputs, 64))
    blocks = tiles(9 * contraction["PADDED"], columns) * tiles(outputs, rows)
    # About 512 programs, a few for each multiprocessor, each with STEPS steps at least.
    shares = max(1, min(512 // blocks, pixels // (STEPS * PIXELS)))
    share = tiles(tiles(pixels, shares), PIXELS) * PIXELS
    shares = tiles(pixels, share)
    partial = torch.empty((shares, outputs, 3, 3, channels), dtype=torch.float32, device=grad.device)
    kernels.weight_gradient[(tiles(9 * contraction["PADDED"], columns), tiles(outputs, rows), shares)](
        grad,
        a,
        a_strides,
        b,
        b_strides,
        partial,
        pixels,
        share,
        height,
        width,
        A=a.shape[1],
        B=b.shape[1] if len(maps) == 2 else 0,
        OUT=outputs,
        A_UNIT=a_unit,
        B_UNIT=b_unit,
        REPLICATE=padding_mode == "replicate",
        PADDED=contraction["PADDED"],
        PRECISION=contraction["PRECISION"],
        M=rows,
        N=columns,
        PIXELS=PIXELS,
        num_warps=4 if torch.version.hip else 8,  # 256 lanes either way
        num_stages=2,
        **FUSED,
    )
    return out.copy_(partial.sum(0).permute(0, 3, 1, 2))


def bias_gradient(grad: Tensor) -> Tensor:
    return grad.permute(0, 2, 3, 1).flatten(0, 2).sum(0, dtype=torch.float32).to(grad.dtype)


def conv_relu(x: Tensor, weight: Tensor, bias: Tensor | None, padding_mode: str) -> Tensor:
    """In channels_last."""
    from .kernels import conv3x3 as kernels

    pixels = _pixels(x)
    batch, channels, height, width = x.shape
    outputs = weight.shape[0]
    out = layout.empty((batch, outputs, height, width), x, torch.channels_last)
    if pixels == 0:
        return out
    x = side_by_side(x)
    (map_strides, map_unit), (out_strides, out_unit) = _map(x), strides(out)
    columns = _columns(outputs, 64)
    kernels.conv_relu[lambda meta: (tiles(pixels, meta["PIXELS"]), tiles(outputs, columns))](
        x,
        map_strides,
        weight.contiguous(memory_format=torch.channels_last),
        weight if bias is None else bias.contiguous(),
        out,
        out_strides,
        pixels,
        height,
        width,
        CHANNELS=channels,
        OUT=outputs,
        MAP_UNIT=map_unit,
        OUT_UNIT=out_unit,
        HAS_BIAS=bias is not None,
        REPLICATE=padding_mode == "replicate",
        N=columns,
        **_contraction(channels, x.dtype),
        **FUSED,
    )
    return out

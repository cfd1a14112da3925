"""The Triton kernels of :mod:`sharpmask_kernels.triton_kernels`: NVIDIA and AMD GPUs, or Triton's interpreter.

The interpreter (``TRITON_INTERPRET=1`` in the environment before triton is imported) runs the same kernels on the CPU,
thousands of times slower: for tests. triton is imported when the first op runs.
"""

from __future__ import annotations

import functools
import importlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import checks, layout
from .reference import FAR

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
"""triton reads the variable when it is imported, so a later change has no meaning."""


@functools.cache
def unavailable() -> str | None:
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return f"triton cannot be imported: {error}"
    if not INTERPRETED and not torch.cuda.is_available():
        return "PyTorch finds no CUDA or ROCm device, and TRITON_INTERPRET=1 is not set"
    return None


def refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda" and not (INTERPRETED and device.type == "cpu"):
        return f"maps must be on a CUDA or ROCm device on backend 'triton', got {device}"
    if dtype not in DTYPES:
        return f"maps must be of dtype {DTYPES[0]}, {DTYPES[1]} or {DTYPES[2]} on backend 'triton', got {dtype}"
    return None


FUSED = {"enable_fp_fusion": True}
"""For every launch: a * b + c in one instruction, whatever the default of this version of Triton is."""


def _launcher(op: Callable[..., Any]) -> Callable[..., Any]:
    """``op`` on the device of its tensors; under the interpreter, which computes on the raw bits of bf16, in fp32."""

    @functools.wraps(op)
    def run(first: Any, *others: Any) -> Any:
        like = first if isinstance(first, Tensor) else first[0]
        if INTERPRETED and like.dtype == torch.bfloat16:
            return _cast(op(*_cast((first, *others), torch.bfloat16, torch.float32)), torch.float32, torch.bfloat16)
        with torch.cuda.device_of(like):
            return op(first, *others)

    return run


def _cast(x: Any, old: torch.dtype, new: torch.dtype) -> Any:
    """Every tensor of dtype ``old`` in a nest of tuples and lists, channels_last if it was."""
    if isinstance(x, tuple | list):
        return type(x)(_cast(item, old, new) for item in x)
    if isinstance(x, Tensor) and x.dtype == old:
        return x.to(new, memory_format=layout.memory_format(x) if x.ndim == 4 else torch.contiguous_format)
    return x


def _tiles(length: int, tile: int) -> int:
    return -(-length // tile)


def _strides(x: Tensor) -> tuple[tuple[int, int, int, int], int]:
    """(batch, channel, row, column) strides, all but the channel's in units of the second result.

    The unit, at most 16, goes to the compiler, which derives from it how wide it may load.
    """
    batch, channel, row, col = x.stride()
    unit = math.gcd(16, batch, row, col)
    return (batch // unit, channel, row // unit, col // unit), unit


def _power_of_2(n: int, most: int) -> int:
    """The least power of two from ``n`` on, or ``most``, itself one."""
    return min(1 << max(n - 1, 0).bit_length(), most)


# merge_upsample, add_upsample, refine
#
# The kernels read maps whose channels lie side by side (channels_last and slices of it). Maps in PyTorch's contiguous
# layout are converted first, one extra pass over each, and outputs in that layout are written element by element
# instead of 8 or 16 bytes at a time: give channels_last maps, and channels_last weights, which are converted likewise.


MOST_PIXELS = 2**31 - 2**13
"""The kernels count the pixels of a batch in 32 bits, and the last tile may go beyond them."""


def _pixels(maps: Tensor) -> int:
    batch, _, height, width = maps.shape
    if (pixels := batch * height * width) > MOST_PIXELS:
        raise checks.refusal("maps", f"of at most {MOST_PIXELS} pixels in all on backend 'triton'", pixels)
    return pixels


def _side_by_side(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous(memory_format=torch.channels_last)


def _map(x: Tensor) -> tuple[tuple[int, int, int], int]:
    (batch, _, row, col), unit = _strides(x)
    return (batch, row, col), unit


def _padded(channels: int) -> int:
    """Channels of one tap in a contraction: a power of two, or a multiple of a whole step."""
    return _power_of_2(channels, 64) if channels <= 64 else _tiles(channels, 64) * 64


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
    return max(least, _power_of_2(count, 32 if INTERPRETED else most))


def _formatted(x: Tensor, memory_format: torch.memory_format) -> Tensor:
    out = layout.empty(x.shape, x, memory_format)
    return x if x.stride() == out.stride() else out.copy_(x)


def _up2(
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
    from ..triton_kernels import upsample as kernels

    pixels = _pixels(maps[0])
    batch, _, height, width = maps[0].shape
    outputs = weight.shape[0]
    out = layout.empty((batch, outputs, 2 * height, 2 * width), weight, memory_format)
    shape = (batch, outputs, height, _tiles(width, 8)) if save else (0,)
    active = out.new_empty(shape, dtype=torch.uint8)
    if pixels == 0:
        return out, active
    a, b = (_side_by_side(m) for m in (maps[0], maps[-1]))
    weight = weight.contiguous(memory_format=torch.channels_last)
    addend = None if addend is None else _side_by_side(addend)
    (a_strides, a_unit), (b_strides, b_unit) = _map(a), _map(b)
    addend_strides, addend_unit = _map(a if addend is None else addend)
    out_strides, out_unit = _strides(out)
    columns = _columns(outputs, 64)
    cols = 16
    halo = int(upsample == "bilinear")

    def grid(meta: dict[str, Any]) -> tuple[int, int]:
        rows = meta["PIXELS"] // (cols + halo) - halo
        return batch * _tiles(height + halo, rows) * _tiles(width + halo, cols), _tiles(outputs, columns)

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


def _before_relu(grad: Tensor, active: Tensor, upsample: str) -> Tensor:
    """The gradient before the ReLU, (batch, outputs, height, width) in channels_last."""
    from ..triton_kernels import upsample as kernels

    batch, outputs, height, width = grad.shape[0], grad.shape[1], grad.shape[2] // 2, grad.shape[3] // 2
    out = layout.empty((batch, outputs, height, width), grad, torch.channels_last)
    pixels = batch * height * width
    if pixels == 0:
        return out
    grad = _side_by_side(grad)
    grad_strides, unit = _map(grad)
    columns = _power_of_2(outputs, 16 if INTERPRETED else 64)
    tile = (128 if INTERPRETED else 1024) // columns  # eight values a thread
    kernels.backward[(_tiles(pixels, tile), _tiles(outputs, columns))](
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


def _input_gradients(
    grad: Tensor,
    weight: Tensor,
    channels: Sequence[int],
    padding_mode: str,
    channels_last: bool,
    needs: Sequence[bool],
    relu: Tensor | None = None,
) -> list[Tensor | None]:
    """The gradients of a convolution's inputs: one, or two that were joined. ``relu``: the first was made by a ReLU."""
    from ..triton_kernels import conv3x3 as kernels

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
    (a_strides, a_unit), (b_strides, b_unit) = _strides(a), _strides(b)
    masked = grad if relu is None else _side_by_side(relu)
    relu_strides, relu_unit = _map(masked)
    kernels.input_gradient[lambda meta: (_tiles(pixels, meta["PIXELS"]), _tiles(last - first, columns))](
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


def _weight_gradient(grad: Tensor, maps: Sequence[Tensor], padding_mode: str, channels_last: bool) -> Tensor:
    """Shares of the pixels summed side by side, then the shares in their order."""
    from ..triton_kernels import conv3x3 as kernels

    batch, outputs, height, width = grad.shape
    channels = sum(m.shape[1] for m in maps)
    out = layout.empty((outputs, channels, 3, 3), grad, layout.chosen(channels_last))
    pixels = batch * height * width
    if pixels == 0:
        return out.zero_()
    a, b = (_side_by_side(m) for m in (maps[0], maps[-1]))
    (a_strides, a_unit), (b_strides, b_unit) = _map(a), _map(b)
    contraction = _contraction(channels, grad.dtype)
    # Narrower where two maps are loaded: registers, and 64 KB of shared memory on AMD.
    columns = _columns(9 * contraction["PADDED"], 128 if len(maps) == 1 and channels >= 64 else 64)
    rows = max(16, _power_of_2(outputs, 64))
    blocks = _tiles(9 * contraction["PADDED"], columns) * _tiles(outputs, rows)
    # About 512 programs, a few for each multiprocessor, each with STEPS steps at least.
    shares = max(1, min(512 // blocks, pixels // (STEPS * PIXELS)))
    share = _tiles(_tiles(pixels, shares), PIXELS) * PIXELS
    shares = _tiles(pixels, share)
    partial = torch.empty((shares, outputs, 3, 3, channels), dtype=torch.float32, device=grad.device)
    kernels.weight_gradient[(_tiles(9 * contraction["PADDED"], columns), _tiles(outputs, rows), shares)](
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


def _bias_gradient(grad: Tensor) -> Tensor:
    return grad.permute(0, 2, 3, 1).flatten(0, 2).sum(0, dtype=torch.float32).to(grad.dtype)


@_launcher
def merge_upsample(
    skip: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, upsample: str, padding_mode: str, save: bool
) -> tuple[Tensor, Tensor]:
    memory_format = layout.memory_format(skip, mask)
    return _up2((skip, mask), None, weight, bias, upsample, padding_mode, save, memory_format)


@_launcher
def merge_upsample_backward(
    grad: Tensor,
    active: Tensor,
    skip: Tensor,
    mask: Tensor,
    weight: Tensor,
    upsample: str,
    padding_mode: str,
    channels_last: bool,
    needs: Sequence[bool],
) -> list[Tensor]:
    grad = _before_relu(grad, active, upsample)
    gradients = _merge_gradients(grad, skip, mask, weight, padding_mode, channels_last, needs)
    return [g for g in gradients if g is not None]


def _merge_gradients(
    grad: Tensor,
    skip: Tensor,
    mask: Tensor,
    weight: Tensor,
    padding_mode: str,
    channels_last: bool,
    needs: Sequence[bool],
    relu: Tensor | None = None,
) -> list[Tensor | None]:
    """Gradients of skip, mask, weight and bias from the one before the ReLU."""
    channels = (skip.shape[1], mask.shape[1])
    return [
        *_input_gradients(grad, weight, channels, padding_mode, channels_last, needs[:2], relu),
        _weight_gradient(grad, (skip, mask), padding_mode, channels_last) if needs[2] else None,
        _bias_gradient(grad) if needs[3] else None,
    ]


@_launcher
def add_upsample(
    horizontal: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, upsample: str, padding_mode: str, save: bool
) -> tuple[Tensor, Tensor]:
    memory_format = layout.memory_format(horizontal, mask)
    return _up2((mask,), horizontal, weight, bias, upsample, padding_mode, save, memory_format)


@_launcher
def add_upsample_backward(
    grad: Tensor,
    active: Tensor,
    mask: Tensor,
    weight: Tensor,
    upsample: str,
    padding_mode: str,
    channels_last: bool,
    needs: Sequence[bool],
) -> list[Tensor]:
    grad = _before_relu(grad, active, upsample)
    gradients = [
        _formatted(grad, layout.chosen(channels_last)) if needs[0] else None,
        *_input_gradients(grad, weight, (mask.shape[1],), padding_mode, channels_last, needs[1:2]),
        _weight_gradient(grad, (mask,), padding_mode, channels_last) if needs[2] else None,
        _bias_gradient(grad) if needs[3] else None,
    ]
    return [g for g in gradients if g is not None]


@_launcher
def refine(
    feature: Tensor,
    mask: Tensor,
    skip_weight: Tensor,
    skip_bias: Tensor | None,
    merge_weight: Tensor,
    merge_bias: Tensor | None,
    upsample: str,
    padding_mode: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    # Two launches: the skip is kept for the backward anyway, and to read back its few channels is little beside the
    # feature's, the more so as they are still in the L2 cache.
    skip = _conv_relu(feature, skip_weight, skip_bias, padding_mode)
    memory_format = layout.memory_format(feature, mask)
    out, active = _up2((skip, mask), None, merge_weight, merge_bias, upsample, padding_mode, save, memory_format)
    return out, _formatted(skip, memory_format) if save else skip.new_empty(0), active


def _conv_relu(x: Tensor, weight: Tensor, bias: Tensor | None, padding_mode: str) -> Tensor:
    """In channels_last."""
    from ..triton_kernels import conv3x3 as kernels

    pixels = _pixels(x)
    batch, channels, height, width = x.shape
    outputs = weight.shape[0]
    out = layout.empty((batch, outputs, height, width), x, torch.channels_last)
    if pixels == 0:
        return out
    x = _side_by_side(x)
    (map_strides, map_unit), (out_strides, out_unit) = _map(x), _strides(out)
    columns = _columns(outputs, 64)
    kernels.conv_relu[lambda meta: (_tiles(pixels, meta["PIXELS"]), _tiles(outputs, columns))](
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


@_launcher
def refine_backward(
    grad: Tensor,
    active: Tensor,
    skip: Tensor,
    feature: Tensor,
    mask: Tensor,
    skip_weight: Tensor,
    merge_weight: Tensor,
    upsample: str,
    padding_mode: str,
    channels_last: bool,
    needs: Sequence[bool],
) -> list[Tensor]:
    grad = _before_relu(grad, active, upsample)
    below = any(needs[i] for i in (0, 2, 3))  # feature, skip_weight, skip_bias: all behind the skip
    wanted = [below, *(needs[i] for i in (1, 4, 5))]
    d_skip, d_mask, d_merge_weight, d_merge_bias = _merge_gradients(
        grad, skip, mask, merge_weight, padding_mode, channels_last, wanted, skip
    )
    d_feature = d_skip_weight = d_skip_bias = None
    if d_skip is not None:
        d_skip = _side_by_side(d_skip)
        (d_feature,) = _input_gradients(
            d_skip, skip_weight, (feature.shape[1],), padding_mode, channels_last, needs[:1]
        )
        d_skip_weight = _weight_gradient(d_skip, (feature,), padding_mode, channels_last) if needs[2] else None
        d_skip_bias = _bias_gradient(d_skip) if needs[3] else None
    gradients = [d_feature, d_mask, d_skip_weight, d_skip_bias, d_merge_weight, d_merge_bias]
    return [g for g in gradients if g is not None]


# gather_windows


@dataclass(frozen=True)
class GatherTile:
    """How many elements a program of gather_windows works on, and how many of them lie side by side in memory."""

    elements: int
    inner: int

    def shape(self, cells: int, channels: int, channels_last: bool) -> tuple[int, int]:
        """(cells, channels) of a tile: never much larger than what there is."""
        if channels_last:
            inner = _power_of_2(channels, self.inner)
            return _power_of_2(cells, self.elements // inner), inner
        inner = _power_of_2(cells, self.inner)
        return inner, _power_of_2(channels, self.elements // inner)


GATHER_TILE = GatherTile(512, 16) if INTERPRETED else GatherTile(2048, 256)
"""On a GPU 128 bytes and more side by side, 128 bits a thread. Small under the interpreter, so that small inputs cross
the edges of tiles. Tests set others."""


@_launcher
def gather_windows(
    maps: Sequence[Tensor], image: Tensor, scale: Tensor, row: Tensor, col: Tensor, size: int, step: int
) -> Tensor:
    from ..triton_kernels import gather_windows as kernels

    batch, channels = maps[0].shape[:2]
    memory_format = layout.memory_format(*maps)
    out = layout.empty((len(image), channels, size, size), maps[0], memory_format)
    windows = [x.contiguous() for x in (image, scale, row, col)]
    step = min(step, FAR)
    channels_last = memory_format == torch.channels_last
    cell_tile, channel_tile = GATHER_TILE.shape(size * size, channels, channels_last)
    grid = (len(image) * _tiles(size * size, cell_tile) * _tiles(channels, channel_tile),)
    if grid[0] == 0:
        return out
    out_strides, out_unit = _strides(out)
    for this, m in enumerate(maps):
        map_strides, map_unit = _strides(m)
        kernels.forward[grid](
            m,
            map_strides,
            out,
            out_strides,
            *windows,
            this,
            len(maps),
            batch,
            m.shape[2],
            m.shape[3],
            size,
            FAR // step + 1,
            step,
            C=channels,
            MAP_UNIT=map_unit,
            OUT_UNIT=out_unit,
            CHANNELS_LAST=channels_last,
            CELLS=cell_tile,
            CHANNELS=channel_tile,
            **FUSED,
        )
    return out


@_launcher
def gather_windows_backward(
    grad: Tensor,
    image: Tensor,
    scale: Tensor,
    row: Tensor,
    col: Tensor,
    batch: int,
    heights: Sequence[int],
    widths: Sequence[int],
    channels_last: bool,
    needs: Sequence[bool],
    step: int,
) -> list[Tensor]:
    from ..triton_kernels import gather_windows as kernels

    channels, size = grad.shape[1:3]
    bounds, *windows = _by_segment(image, scale, row, col, batch, len(needs), step)
    grad_strides, grad_unit = _strides(grad)
    gradients = []
    for this, (height, width, need) in enumerate(zip(heights, widths, needs, strict=True)):
        if not need:
            continue
        gradient = layout.empty((batch, channels, height, width), grad, layout.chosen(channels_last))
        gradients.append(gradient)
        cell_tile, channel_tile = GATHER_TILE.shape(height * width, channels, channels_last)
        cols = _power_of_2(width, min(16, cell_tile))
        rows = cell_tile // cols
        tiles = _tiles(height, rows) * _tiles(width, cols) * _tiles(channels, channel_tile)
        if batch == 0:
            continue
        out_strides, out_unit = _strides(gradient)
        kernels.backward[(batch * tiles,)](
            gradient,
            out_strides,
            grad,
            grad_strides,
            bounds,
            *windows,
            this * batch,
            height,
            width,
            size,
            C=channels,
            OUT_UNIT=out_unit,
            GRAD_UNIT=grad_unit,
            CHANNELS_LAST=channels_last,
            ROWS=rows,
            COLS=cols,
            CHANNELS=channel_tile,
            **FUSED,
        )
    return gradients


def _by_segment(
    image: Tensor, scale: Tensor, row: Tensor, col: Tensor, batch: int, scales: int, step: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Windows ordered by scale and image, else as they come: what is summed in this order has the same bits every time.

    Returns where the segment ``scale * batch + image`` begins, (scales * batch + 1); the windows' indices; their first
    rows and columns on the map. Windows of no map come last. Nothing waits for the device.
    """
    known = (scale >= 0) & (scale < scales) & (image >= 0) & (image < batch)
    segment, order = torch.sort(torch.where(known, scale * batch + image, scales * batch), stable=True)
    bounds = torch.searchsorted(segment, torch.arange(scales * batch + 1, device=image.device))
    step = min(step, FAR)
    limit = FAR // step + 1
    top, left = (x[order].clamp(-limit, limit) * step for x in (row, col))
    return bounds, order, top, left

"""The meaning of every op, in plain PyTorch and numpy: correct on any device, unhurried, deterministic.

Arguments have been checked by :mod:`sharpmask_kernels.functional`, which documents the ops; signatures are those of
the schemas in :mod:`sharpmask_kernels.ops`. The forward functions are differentiable by PyTorch too: that is what
exported graphs hold. The backward functions do the same with what the ops save.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import layout, rle
from ..windows import sample_positions

WINDOWS_PER_CHUNK = 64
"""Windows refined at a time: the activations of one chunk stay in cache and memory stays bounded."""

FAR = 1 << 40
"""No map has so many rows: starts of windows are cut here, so that they cannot overflow."""

Array = npt.NDArray[np.float64]


def unavailable() -> None:
    """The reference runs everywhere."""
    return None


def refusal(device: torch.device, dtype: torch.dtype) -> None:
    """The reference takes every map."""
    return None


# The pieces, each with its backward.


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None, padding_mode: str) -> Tensor:
    """3x3 convolution of stride 1 that keeps the size, its border as ``padding_mode`` says."""
    if padding_mode == "zeros":
        return F.conv2d(x, weight, bias, padding=1)
    return F.conv2d(replicate(x), weight, bias)


def replicate(x: Tensor) -> Tensor:
    return F.pad(x, (1, 1, 1, 1), mode="replicate")


def conv3x3_backward(
    grad: Tensor, x: Tensor, weight: Tensor, padding_mode: str, needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias, of those that ``needs`` asks for (the others are None)."""
    zeros = padding_mode == "zeros"
    d_x, d_weight, d_bias = torch.ops.aten.convolution_backward(
        grad,
        x if zeros else replicate(x),
        weight,
        [weight.shape[0]],
        stride=[1, 1],
        padding=[1, 1] if zeros else [0, 0],
        dilation=[1, 1],
        transposed=False,
        output_padding=[0, 0],
        groups=1,
        output_mask=list(needs),
    )
    return d_x if zeros or d_x is None else replicate_backward(d_x), d_weight, d_bias


def replicate_backward(grad: Tensor) -> Tensor:
    """Adds what the border received to the cells it was copied from. PyTorch's own uses atomics on a GPU."""
    for dim in (-2, -1):
        length = grad.shape[dim]
        inner = grad.narrow(dim, 1, length - 2).clone()
        inner.narrow(dim, 0, 1).add_(grad.narrow(dim, 0, 1))
        inner.narrow(dim, -1, 1).add_(grad.narrow(dim, -1, 1))
        grad = inner
    return grad


def up2(x: Tensor, mode: str) -> Tensor:
    """Twice the height and width, bilinear (half-pixel centres) or nearest."""
    if mode == "nearest":
        return F.interpolate(x, scale_factor=2, mode="nearest")
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def up2_backward(grad: Tensor, mode: str) -> Tensor:
    """Gathers, for every cell, from the at most four rows and columns it was spread to. fp32 at least.

    PyTorch's own scatters, on a GPU with atomics, whose order and so whose bits differ from run to run.
    """
    grad = grad if grad.dtype == torch.float64 else grad.float()
    for dim in (-2, -1):
        even, odd = grad.unflatten(dim, (-1, 2)).unbind(dim)
        here = even + odd
        if mode == "bilinear":
            length = here.shape[dim]
            here *= 0.75
            # The neighbours' quarters; beyond the border they fall back onto the border cell.
            here.narrow(dim, 1, length - 1).add_(odd.narrow(dim, 0, length - 1), alpha=0.25)
            here.narrow(dim, 0, length - 1).add_(even.narrow(dim, 1, length - 1), alpha=0.25)
            here.narrow(dim, 0, 1).add_(even.narrow(dim, 0, 1), alpha=0.25)
            here.narrow(dim, -1, 1).add_(odd.narrow(dim, -1, 1), alpha=0.25)
        grad = here
    return grad


def relu_up2(x: Tensor, upsample: str, memory_format: torch.memory_format, save: bool) -> tuple[Tensor, Tensor]:
    """up2(ReLU(x)), and where ReLU let through, packed as the backward takes it (empty if not ``save``)."""
    active = pack_bits(~(x <= 0)) if save else x.new_empty(0, dtype=torch.uint8)
    return up2(F.relu(x), upsample).contiguous(memory_format=memory_format), active


def relu_up2_backward(grad: Tensor, active: Tensor, upsample: str) -> Tensor:
    bits = unpack_bits(active, grad.shape[-1] // 2)
    return torch.where(bits, up2_backward(grad, upsample), 0).to(grad.dtype)


def pack_bits(bits: Tensor) -> Tensor:
    """Booleans (..., W) to bytes (..., ceil(W / 8)), the first of eight in the lowest bit."""
    bits = F.pad(bits, (0, -bits.shape[-1] % 8)).unflatten(-1, (-1, 8)).to(torch.uint8)
    return (bits << torch.arange(8, dtype=torch.uint8, device=bits.device)).sum(-1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, width: int) -> Tensor:
    """The inverse of :func:`pack_bits`, (..., ceil(width / 8)) to booleans (..., width)."""
    bits = packed[..., None] >> torch.arange(8, dtype=torch.uint8, device=packed.device) & 1
    return bits.flatten(-2)[..., :width].bool()


def apart(x: Tensor, sizes: list[int], dim: int) -> list[Tensor]:
    """The parts of ``x``, copied: no output of an op may share memory with another."""
    return [part.clone() for part in x.split(sizes, dim)]


def asked(gradients: Sequence[Tensor | None], needs: Sequence[bool], channels_last: bool) -> list[Tensor]:
    """The gradients that ``needs`` asks for, maps and weights in their formats."""
    chosen = [g for g, need in zip(gradients, needs, strict=True) if need and g is not None]
    return [g.contiguous(memory_format=layout.chosen(channels_last and g.ndim == 4)) for g in chosen]


# The ops.


def merge_upsample(
    skip: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, upsample: str, padding_mode: str, save: bool
) -> tuple[Tensor, Tensor]:
    merged = conv3x3(torch.cat([skip, mask], dim=1), weight, bias, padding_mode)
    return relu_up2(merged, upsample, layout.memory_format(skip, mask), save)


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
    grad = relu_up2_backward(grad, active, upsample)
    joined = torch.cat([skip, mask], dim=1)
    wanted = [needs[0] or needs[1], needs[2], needs[3]]
    d_joined, d_weight, d_bias = conv3x3_backward(grad, joined, weight, padding_mode, wanted)
    d_skip, d_mask = apart(d_joined, [skip.shape[1], mask.shape[1]], dim=1) if wanted[0] else (None, None)
    return asked([d_skip, d_mask, d_weight, d_bias], needs, channels_last)


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
    memory_format = layout.memory_format(feature, mask)
    skip = F.relu(conv3x3(feature, skip_weight, skip_bias, padding_mode)).contiguous(memory_format=memory_format)
    out, active = merge_upsample(skip, mask, merge_weight, merge_bias, upsample, padding_mode, save)
    return out.contiguous(memory_format=memory_format), skip if save else skip.new_empty(0), active


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
    below = any(needs[i] for i in (0, 2, 3))  # feature, skip_weight, skip_bias: all behind the skip
    wanted = [below, *(needs[i] for i in (1, 4, 5))]
    merged = iter(
        merge_upsample_backward(grad, active, skip, mask, merge_weight, upsample, padding_mode, channels_last, wanted)
    )
    d_skip, d_mask, d_merge_weight, d_merge_bias = (next(merged) if need else None for need in wanted)
    d_feature = d_skip_weight = d_skip_bias = None
    if d_skip is not None:
        d_skip = torch.where(skip <= 0, 0, d_skip)
        d_feature, d_skip_weight, d_skip_bias = conv3x3_backward(
            d_skip, feature, skip_weight, padding_mode, [needs[i] for i in (0, 2, 3)]
        )
    gradients = [d_feature, d_mask, d_skip_weight, d_skip_bias, d_merge_weight, d_merge_bias]
    return asked(gradients, needs, channels_last)


def add_upsample(
    horizontal: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, upsample: str, padding_mode: str, save: bool
) -> tuple[Tensor, Tensor]:
    merged = horizontal + conv3x3(mask, weight, bias, padding_mode)
    return relu_up2(merged, upsample, layout.memory_format(horizontal, mask), save)


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
    grad = relu_up2_backward(grad, active, upsample)
    gradients = [grad, *conv3x3_backward(grad, mask, weight, padding_mode, needs[1:])]
    return asked(gradients, needs, channels_last)


def topk_windows(scores: Sequence[Tensor], n: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    device = scores[0].device
    batch = scores[0].shape[0]
    flat = torch.cat([s.detach().float().flatten(1) for s in scores], dim=1)
    flat = torch.where(flat.isnan(), -math.inf, flat)
    # Equal scores stay in the order scale, row, col, which is the order of the columns here. ONNX has no stable sort,
    # but its TopK is stable, as PyTorch's own is not.
    if torch.onnx.is_in_onnx_export():
        score, order = torch.topk(flat, min(n, flat.shape[1]), dim=1)
    else:
        score, order = torch.sort(flat, dim=1, descending=True, stable=True)
        score, order = score[:, :n], order[:, :n]

    def per_cell(values: list[Tensor]) -> Tensor:
        return torch.cat(values)[order].flatten()

    grids = [(s.shape[2], s.shape[3]) for s in scores]
    cells = [torch.arange(h * w, device=device) for h, w in grids]
    image = torch.arange(batch, device=device)[:, None].expand_as(order)
    return (
        score.flatten(),
        image.flatten(),
        per_cell([torch.full_like(cell, i) for i, cell in enumerate(cells)]),
        per_cell([cell // w for cell, (_, w) in zip(cells, grids, strict=True)]),
        per_cell([cell % w for cell, (_, w) in zip(cells, grids, strict=True)]),
    )


def gather_windows(
    maps: Sequence[Tensor], image: Tensor, scale: Tensor, row: Tensor, col: Tensor, size: int, step: int
) -> Tensor:
    # All maps as one table of pixels, a row of zeros last: a window is a plain look-up, whatever its scale.
    batch, channels = maps[0].shape[:2]
    pixels = [m.permute(0, 2, 3, 1).reshape(-1, channels) for m in maps]
    table = torch.cat([*pixels, maps[0].new_zeros(1, channels)])
    heights, widths = [m.shape[2] for m in maps], [m.shape[3] for m in maps]
    index = pixel_index(image, scale, row, col, batch, heights, widths, size, step)
    gathered = table.index_select(0, index.flatten()).view(len(scale), size, size, channels).permute(0, 3, 1, 2)
    return gathered.contiguous(memory_format=layout.memory_format(*maps))


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
    channels, size = grad.shape[1:3]
    index = pixel_index(image, scale, row, col, batch, heights, widths, size, step).flatten()
    wide = torch.float64 if grad.dtype == torch.float64 else torch.float32
    values = grad.permute(0, 2, 3, 1).reshape(-1, channels).to(wide)
    pixels = [batch * h * w for h, w in zip(heights, widths, strict=True)]
    table = values.new_zeros(sum(pixels) + 1, channels)
    # Of PyTorch's two ways of adding rows, each device has one that adds in a fixed order.
    if grad.is_cuda:
        table.index_put_((index,), values, accumulate=True)
    else:
        table.index_add_(0, index, values)
    tables = apart(table.to(grad.dtype)[:-1], pixels, dim=0)
    gradients = [
        t.view(batch, h, w, channels).permute(0, 3, 1, 2) for t, h, w in zip(tables, heights, widths, strict=True)
    ]
    return asked(gradients, needs, channels_last)


def pixel_index(
    image: Tensor,
    scale: Tensor,
    row: Tensor,
    col: Tensor,
    batch: int,
    heights: Sequence[int],
    widths: Sequence[int],
    size: int,
    step: int,
) -> Tensor:
    """Where the cells of every window stand in the table of the pixels of all maps, (N, size, size).

    The entry behind the last pixel stands for all that is outside. No shape here depends on the windows' values.
    """
    # Scale by scale, with plain numbers: a tensor of the sizes would have to be copied to the device.
    known = (image >= 0) & (image < batch)
    height, width, base = (torch.zeros_like(scale) for _ in range(3))
    first = 0
    for i, (h, w) in enumerate(zip(heights, widths, strict=True)):
        here = (scale == i) & known
        height, width, base = height.where(~here, h), width.where(~here, w), base.where(~here, image * (h * w) + first)
        first += batch * h * w
    height, width, base = height[:, None, None], width[:, None, None], base[:, None, None]
    cells = torch.arange(size, device=scale.device)
    rows = first_cell(row, step)[:, None, None] + cells[:, None]
    cols = first_cell(col, step)[:, None, None] + cells
    # A window of no image or scale has height 0, so that no cell of it is inside.
    inside = (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
    return torch.where(inside, base + rows * width + cols, first)


def first_cell(cell: Tensor, step: int) -> Tensor:
    limit = FAR // step + 1
    return cell.clamp(-limit, limit) * step


def refine_windows(
    encoding: Tensor,
    horizontals: Sequence[Tensor],
    image: Tensor,
    scale: Tensor,
    row: Tensor,
    col: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    convs: Sequence[int],
    upsample: str,
    padding_mode: str,
    threshold: float | None,
    out: Tensor,
) -> None:
    options = (weights, biases, convs, upsample, padding_mode, threshold)
    for start in range(0, len(encoding), WINDOWS_PER_CHUNK):
        chunk = slice(start, start + WINDOWS_PER_CHUNK)
        out[chunk] = cascade(encoding[chunk], horizontals, image[chunk], scale[chunk], row[chunk], col[chunk], *options)


def cascade(
    encoding: Tensor,
    horizontals: Sequence[Tensor],
    image: Tensor,
    scale: Tensor,
    row: Tensor,
    col: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    convs: Sequence[int],
    upsample: str,
    padding_mode: str,
    threshold: float | None,
) -> Tensor:
    """:func:`refine_windows` of windows few enough to hold their activations."""
    x, size, stages = encoding, encoding.shape[-1], len(convs)
    parameters = iter(zip(weights, biases, strict=True))
    for stage, count in enumerate(convs):
        step = 1 << stage
        horizontal = gather_windows(horizontals[stage::stages], image, scale, row, col, size * step, step)
        for weight, bias in itertools.islice(parameters, count - 1):
            x = F.relu(conv3x3(x, weight, bias, padding_mode))
        x, _ = add_upsample(horizontal, x, *next(parameters), upsample, padding_mode, save=False)
    logits = conv3x3(x, *next(parameters), padding_mode)[:, 0]
    # To the logits' dtype before the comparison, which would else round its threshold to 16 bits.
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits if threshold is None else pack_bits(logits > logit(threshold))


def logit(probability: float) -> float:
    """The logit at which the sigmoid reaches ``probability``."""
    return math.log(probability / (1 - probability))


def encode_windows(
    logits: Tensor,
    scale: Tensor,
    row: Tensor,
    col: Tensor,
    image_size: Sequence[int],
    scales: Sequence[float],
    threshold: float,
) -> tuple[Tensor, Tensor]:
    # numpy knows no bf16.
    values = (logits.float() if logits.dtype == torch.bfloat16 else logits).cpu().numpy()
    cells = zip(*(t.tolist() for t in (scale, row, col)), strict=True)
    counts = list(encoded(values, cells, (image_size[0], image_size[1]), scales, threshold))
    offsets = torch.tensor(list(itertools.accumulate(map(len, counts), initial=0)))
    return torch.frombuffer(bytearray(b"".join(counts) or b"\0"), dtype=torch.uint8)[: offsets[-1]], offsets


def encoded(
    values: npt.NDArray[Any],
    cells: Iterator[tuple[int, int, int]],
    image_size: tuple[int, int],
    scales: Sequence[float],
    threshold: float,
) -> Iterator[bytes]:
    """The COCO counts of each map of logits, pasted at its (scale, row, col)."""
    (height, width), side = image_size, values.shape[-1]
    for value, (scale, row, col) in zip(values, cells, strict=True):
        top, v = sample_positions(height, scales[scale], row, side)
        left, u = sample_positions(width, scales[scale], col, side)
        yield rle.encode(bilinear(value, v, u) > logit(threshold), (top, left), image_size)


def bilinear(value: npt.NDArray[Any], v: Array, u: Array) -> Array:
    """Samples of the map ``value`` (S, S) at all pairs of rows ``v`` and columns ``u`` in [0, S - 1], in fp64."""
    rows = _lerp(value.astype(np.float64), v)
    return _lerp(rows.T, u).T


def _lerp(value: Array, position: Array) -> Array:
    low = position.astype(np.int64)
    high = np.minimum(low + 1, len(value) - 1)
    fraction = (position - low)[:, None]
    return value[low] * (1 - fraction) + value[high] * fraction

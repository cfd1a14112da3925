"""The meaning of every op, in plain PyTorch and numpy: correct on any device, differentiable, unhurried.

Arguments have been checked by :mod:`sharpmask_kernels.functional`, which also documents shapes and errors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import rle
from ..windows import Windows, sample_positions

WINDOWS_PER_CHUNK = 64
"""Windows refined at a time: the activations of one chunk stay in cache and memory stays bounded."""

Array = npt.NDArray[np.float64]
ConvParameters = tuple[Tensor, Tensor | None]


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None, padding_mode: str) -> Tensor:
    """3x3 convolution of stride 1 that keeps the size, its border as ``padding_mode`` says."""
    if padding_mode == "zeros":
        return F.conv2d(x, weight, bias, padding=1)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), weight, bias)


def up2(x: Tensor, mode: str) -> Tensor:
    """Twice the height and width, bilinear (half-pixel centres) or nearest."""
    if mode == "nearest":
        return F.interpolate(x, scale_factor=2, mode="nearest")
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def memory_format(*maps: Tensor) -> torch.memory_format:
    """What an op gives out: channels_last if all its maps are that, and not contiguous at the same time."""
    if all(m.is_contiguous(memory_format=torch.channels_last) and not m.is_contiguous() for m in maps):
        return torch.channels_last
    return torch.contiguous_format


def merge_upsample(
    skip: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, *, upsample: str, padding_mode: str
) -> Tensor:
    merged = conv3x3(torch.cat([skip, mask], dim=1), weight, bias, padding_mode)
    return up2(F.relu(merged), upsample).contiguous(memory_format=memory_format(skip, mask))


def refine(
    feature: Tensor,
    mask: Tensor,
    skip_weight: Tensor,
    skip_bias: Tensor | None,
    merge_weight: Tensor,
    merge_bias: Tensor | None,
    *,
    upsample: str,
    padding_mode: str,
) -> Tensor:
    skip = F.relu(conv3x3(feature, skip_weight, skip_bias, padding_mode))
    out = merge_upsample(skip, mask, merge_weight, merge_bias, upsample=upsample, padding_mode=padding_mode)
    return out.contiguous(memory_format=memory_format(feature, mask))


def add_upsample(
    horizontal: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, *, upsample: str, padding_mode: str
) -> Tensor:
    merged = horizontal + conv3x3(mask, weight, bias, padding_mode)
    return up2(F.relu(merged), upsample).contiguous(memory_format=memory_format(horizontal, mask))


def topk_windows(scores: Sequence[Tensor], n: int) -> Windows:
    device = scores[0].device
    batch = scores[0].shape[0]
    flat = torch.cat([s.detach().float().flatten(1) for s in scores], dim=1)
    flat = torch.where(flat.isnan(), -math.inf, flat)
    # A stable sort keeps equal scores in the order scale, row, col, which is the order of the columns here.
    score, order = torch.sort(flat, dim=1, descending=True, stable=True)
    score, order = score[:, :n], order[:, :n]

    def per_cell(values: list[Tensor]) -> Tensor:
        return torch.cat(values)[order].flatten()

    grids = [(s.shape[2], s.shape[3]) for s in scores]
    cells = [torch.arange(h * w, device=device) for h, w in grids]
    image = torch.arange(batch, device=device)[:, None].expand_as(order)
    return Windows(
        score=score.flatten(),
        image=image.flatten(),
        scale=per_cell([torch.full_like(cell, i) for i, cell in enumerate(cells)]),
        row=per_cell([cell // w for cell, (_, w) in zip(cells, grids, strict=True)]),
        col=per_cell([cell % w for cell, (_, w) in zip(cells, grids, strict=True)]),
    )


def gather_windows(maps: Sequence[Tensor], windows: Windows, size: int, *, step: int) -> Tensor:
    # All maps as one table of pixels, a row of zeros last: a window is a plain look-up, whatever its scale,
    # with no shape that depends on the windows' values.
    device = maps[0].device
    channels = maps[0].shape[1]
    table = torch.cat([m.permute(0, 2, 3, 1).reshape(-1, channels) for m in maps] + [maps[0].new_zeros(1, channels)])
    pixels = [m.shape[0] * m.shape[2] * m.shape[3] for m in maps]
    first = torch.tensor([sum(pixels[:i]) for i in range(len(maps))], device=device)
    heights = torch.tensor([m.shape[2] for m in maps], device=device)
    widths = torch.tensor([m.shape[3] for m in maps], device=device)

    known = (windows.scale >= 0) & (windows.scale < len(maps))
    known &= (windows.image >= 0) & (windows.image < maps[0].shape[0])
    scale = torch.where(known, windows.scale, 0)
    height, width = heights[scale][:, None, None], widths[scale][:, None, None]
    cells = torch.arange(size, device=device)
    row = (windows.row * step)[:, None, None] + cells[:, None]
    col = (windows.col * step)[:, None, None] + cells
    inside = known[:, None, None] & (row >= 0) & (row < height) & (col >= 0) & (col < width)
    index = first[scale][:, None, None] + (windows.image[:, None, None] * height + row) * width + col
    index = torch.where(inside, index, len(table) - 1)
    gathered = table.index_select(0, index.flatten())
    gathered = gathered.view(len(scale), size, size, channels).permute(0, 3, 1, 2)
    return gathered.contiguous(memory_format=memory_format(*maps))


def refine_windows(
    encoding: Tensor,
    horizontals: Sequence[Sequence[Tensor]],
    windows: Windows,
    stages: Sequence[Sequence[ConvParameters]],
    head: ConvParameters,
    *,
    upsample: str,
    padding_mode: str,
    threshold: float | None,
    out: Tensor | None,
) -> Tensor:
    count, _, size, _ = encoding.shape
    side = size << len(stages)
    dtype = torch.float64 if encoding.dtype == torch.float64 else torch.float32
    if out is None and threshold is None:
        out = encoding.new_empty((count, side, side), dtype=dtype)
    elif out is None:
        out = torch.empty((count, side, -(-side // 8)), dtype=torch.uint8, device=encoding.device)
    for start in range(0, count, WINDOWS_PER_CHUNK):
        chunk = slice(start, start + WINDOWS_PER_CHUNK)
        x = encoding[chunk]
        for stage, convs in enumerate(stages):
            maps = [levels[stage] for levels in horizontals]
            step = 1 << stage
            horizontal = gather_windows(maps, windows.select(chunk), size * step, step=step)
            for weight, bias in convs[:-1]:
                x = F.relu(conv3x3(x, weight, bias, padding_mode))
            weight, bias = convs[-1]
            x = add_upsample(horizontal, x, weight, bias, upsample=upsample, padding_mode=padding_mode)
        # To the logits' dtype before the comparison, which would else round its threshold to 16 bits.
        logits = conv3x3(x, *head, padding_mode)[:, 0].to(dtype)
        out[chunk] = logits if threshold is None else pack_bits(logits > logit(threshold))
    return out


def logit(probability: float) -> float:
    """The logit at which the sigmoid reaches ``probability``."""
    return math.log(probability / (1 - probability))


def pack_bits(bits: Tensor) -> Tensor:
    """Booleans (..., W) to bytes (..., ceil(W / 8)), the first of eight in the lowest bit."""
    bits = F.pad(bits, (0, -bits.shape[-1] % 8)).unflatten(-1, (-1, 8))
    place = 1 << torch.arange(8, device=bits.device)
    return (bits * place).sum(-1).to(torch.uint8)


def encode_windows(
    logits: Tensor,
    windows: Windows,
    image_size: tuple[int, int],
    scales: Sequence[float],
    *,
    threshold: float,
) -> list[dict[str, object]]:
    # numpy knows no bf16.
    values = (logits.float() if logits.dtype == torch.bfloat16 else logits).detach().cpu().numpy()
    side = values.shape[-1]
    height, width = image_size
    cells = zip(*(t.tolist() for t in (windows.scale, windows.row, windows.col)), strict=True)
    encoded: list[dict[str, object]] = []
    for value, (scale, row, col) in zip(values, cells, strict=True):
        top, v = sample_positions(height, scales[scale], row, side)
        left, u = sample_positions(width, scales[scale], col, side)
        bits = bilinear(value, v, u) > logit(threshold)
        encoded.append({"size": [height, width], "counts": rle.encode(bits, (top, left), image_size)})
    return encoded


def bilinear(value: npt.NDArray[Any], v: Array, u: Array) -> Array:
    """Samples of the map ``value`` (S, S) at all pairs of rows ``v`` and columns ``u`` in [0, S - 1], in fp64."""
    rows = _lerp(value.astype(np.float64), v)
    return _lerp(rows.T, u).T


def _lerp(value: Array, position: Array) -> Array:
    low = position.astype(np.int64)
    high = np.minimum(low + 1, len(value) - 1)
    fraction = (position - low)[:, None]
    return value[low] * (1 - fraction) + value[high] * fraction

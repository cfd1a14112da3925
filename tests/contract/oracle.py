"""The ops written down from their formulas: in numpy, and, for gradients, in plain differentiable PyTorch. float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from sharpmask_kernels import Windows

Array = npt.NDArray[np.float64]


def array(x: Tensor | None) -> Any:
    return None if x is None else x.detach().cpu().double().numpy()


def conv(x: Array, weight: Array, bias: Array | None, padding_mode: str) -> Array:
    height, width = x.shape[2:]
    border = ((0, 0), (0, 0), (1, 1), (1, 1))
    padded = np.pad(x, border, mode="constant" if padding_mode == "zeros" else "edge")
    out = np.zeros((len(x), len(weight), height, width))
    if bias is not None:
        out += bias[:, None, None]
    for dy, dx in itertools.product(range(3), range(3)):
        tap = padded[:, :, dy : dy + height, dx : dx + width]
        out += np.einsum("oi,bihw->bohw", weight[:, :, dy, dx], tap, optimize=True)
    return out


def up2(x: Array, upsample: str) -> Array:
    return _up2_rows(_up2_rows(x, upsample).swapaxes(2, 3), upsample).swapaxes(2, 3)


def _up2_rows(x: Array, upsample: str) -> Array:
    """Row 2i lies a quarter of a cell above the centre of row i, row 2i + 1 a quarter below; or corner on corner."""
    length = x.shape[2]
    out = np.empty((*x.shape[:2], 2 * length, x.shape[3]))
    if upsample == "bilinear_corners":
        for i in range(2 * length):
            above, rest = divmod(i * (length - 1), 2 * length - 1)
            share = rest / (2 * length - 1)
            below = x[:, :, above + 1] * share if share else 0
            out[:, :, i] = x[:, :, above] * (1 - share) + below
        return out
    for i in range(length):
        above, here, below = x[:, :, max(i - 1, 0)], x[:, :, i], x[:, :, min(i + 1, length - 1)]
        near = upsample == "nearest"
        out[:, :, 2 * i] = here if near else 0.25 * above + 0.75 * here
        out[:, :, 2 * i + 1] = here if near else 0.75 * here + 0.25 * below
    return out


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": relu,
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "none": lambda x: x,
}


def upsample_merge(
    mask: Array, skip: Array | None, weight: Array, bias: Array | None, first: bool, up: str, pad: str, activation: str
) -> Array:
    maps = [up2(mask, up), *([] if skip is None else [skip])]
    return ACTIVATIONS[activation](conv(np.concatenate(maps if first else maps[::-1], axis=1), weight, bias, pad))


def upsample_add(mask: Array, lateral: Array, up: str, activation: str) -> Array:
    return ACTIVATIONS[activation](up2(mask, up) + lateral)


def merge_upsample(skip: Array, mask: Array, weight: Array, bias: Array | None, up: str, pad: str) -> Array:
    return up2(relu(conv(np.concatenate([skip, mask], axis=1), weight, bias, pad)), up)


def add_upsample(horizontal: Array, mask: Array, weight: Array, bias: Array | None, up: str, pad: str) -> Array:
    return up2(relu(horizontal + conv(mask, weight, bias, pad)), up)


def refine(
    feature: Array, mask: Array, sw: Array, sb: Array | None, mw: Array, mb: Array | None, up: str, pad: str
) -> Array:
    return merge_upsample(relu(conv(feature, sw, sb, pad)), mask, mw, mb, up, pad)


FORMULAS: dict[str, Callable[..., Array]] = {
    "merge_upsample": merge_upsample,
    "add_upsample": add_upsample,
    "refine": refine,
}


def gather_windows(maps: Sequence[Array], windows: Windows, size: int, step: int) -> Array:
    out = np.zeros((len(windows.score), maps[0].shape[1], size, size))
    for n, (image, scale, row, col) in enumerate(zip(*(f.tolist() for f in windows[1:]), strict=True)):
        source = maps[scale][image]
        for y, x in itertools.product(range(size), range(size)):
            r, c = row * step + y, col * step + x
            if 0 <= r < source.shape[1] and 0 <= c < source.shape[2]:
                out[n, :, y, x] = source[:, r, c]
    return out


def ranking(scores: Sequence[Tensor], n: int) -> list[tuple[float, int, int, int, int]]:
    """(score, image, scale, row, col), image after image, best first, equal ones in reading order."""
    rows = []
    for image in range(scores[0].shape[0]):
        cells = []
        for scale, grid in enumerate(scores):
            for row, col in itertools.product(range(grid.shape[2]), range(grid.shape[3])):
                value = grid[image, 0, row, col].item()
                cells.append((-math.inf if math.isnan(value) else value, image, scale, row, col))
        rows += sorted(cells, key=lambda cell: -cell[0])[:n]  # sorted() is stable
    return rows


# Plain PyTorch, as a user's model has it.


def plain_conv(x: Tensor, weight: Tensor, bias: Tensor | None, padding_mode: str) -> Tensor:
    mode = "constant" if padding_mode == "zeros" else "replicate"
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode=mode), weight, bias)


def plain_up2(x: Tensor, upsample: str) -> Tensor:
    if upsample == "nearest":
        return F.interpolate(x, scale_factor=2, mode="nearest")
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=upsample == "bilinear_corners")


PLAIN_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "elu": F.elu,
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
    "none": lambda x: x,
}


def plain_upsample_merge(
    mask: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    first: bool,
    up: str,
    pad: str,
    activation: str,
) -> Tensor:
    maps = [plain_up2(mask, up), *([] if skip is None else [skip])]
    merged = plain_conv(torch.cat(maps if first else maps[::-1], dim=1), weight, bias, pad)
    return PLAIN_ACTIVATIONS[activation](merged)


def plain_upsample_add(mask: Tensor, lateral: Tensor, up: str, activation: str) -> Tensor:
    return PLAIN_ACTIVATIONS[activation](plain_up2(mask, up) + lateral)


def plain_merge_upsample(skip: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, up: str, pad: str) -> Tensor:
    return plain_up2(F.relu(plain_conv(torch.cat([skip, mask], 1), weight, bias, pad)), up)


def plain_add_upsample(
    horizontal: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, up: str, pad: str
) -> Tensor:
    return plain_up2(F.relu(horizontal + plain_conv(mask, weight, bias, pad)), up)


def plain_refine(
    feature: Tensor, mask: Tensor, sw: Tensor, sb: Tensor | None, mw: Tensor, mb: Tensor | None, up: str, pad: str
) -> Tensor:
    return plain_merge_upsample(F.relu(plain_conv(feature, sw, sb, pad)), mask, mw, mb, up, pad)


PLAIN: dict[str, Callable[..., Tensor]] = {
    "merge_upsample": plain_merge_upsample,
    "add_upsample": plain_add_upsample,
    "refine": plain_refine,
}


def plain_horizontal(feature: Tensor, convs: Sequence[tuple[Tensor, Tensor | None]], padding_mode: str) -> Tensor:
    x = feature
    for i, (weight, bias) in enumerate(convs):
        x = plain_conv(F.relu(x) if i else x, weight, bias, padding_mode)
    return x


def plain_gather_windows(maps: Sequence[Tensor], windows: Windows, size: int, step: int) -> Tensor:
    """Every window cut out of its map, padded by enough zeros."""
    cut = []
    for image, scale, row, col in zip(*(f.tolist() for f in windows[1:]), strict=True):
        source = maps[scale][image]
        # Windows further away than this are as empty.
        top, left = (max(-size, min(v * step, max(source.shape[1:]))) + size for v in (row, col))
        reach = max(source.shape[1:]) + 2 * size
        padded = F.pad(source, (size, reach, size, reach))
        cut.append(padded[:, top : top + size, left : left + size])
    return torch.stack(cut) if cut else maps[0].new_zeros(0, maps[0].shape[1], size, size)

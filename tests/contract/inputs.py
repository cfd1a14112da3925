"""Arguments of all kinds: dtypes, layouts, shapes, windows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sharpmask_kernels as kernels
from sharpmask_kernels import Windows
from sharpmask_kernels.checks import PADDING_MODES, UPSAMPLES

from . import oracle
from .oracle import Array, array

MODES = list(itertools.product(UPSAMPLES, PADDING_MODES))

# Largest error allowed, as a share of the largest value of the result. The oracle sees the inputs after their rounding
# to the dtype, sums are accumulated in fp32 at least, so what is left is:
TOLERANCE = {
    torch.float64: 1e-13,  # a sum of at most 9 * 13 products, each rounded to 2^-53
    torch.float32: 4e-6,  # the same with 2^-24
    torch.float16: 2e-3,  # up to four intermediate maps (skip, merge, sum, result), each rounded to 2^-11
    torch.bfloat16: 16e-3,  # the same with 2^-8
}
DTYPES = list(TOLERANCE)


def assert_near(out: Tensor, expected: Array, dtype: torch.dtype, slack: float = 1) -> None:
    """``out`` has ``dtype`` and is ``expected`` up to ``slack`` times the tolerance."""
    assert tuple(out.shape) == expected.shape
    assert out.dtype == dtype
    if expected.size:
        limit = slack * TOLERANCE[dtype] * max(1, np.abs(expected).max())
        np.testing.assert_allclose(array(out), expected, rtol=0, atol=limit)


class Random:
    """Tensors of one dtype from one seed."""

    def __init__(self, dtype: torch.dtype = torch.float64, seed: int = 0, device: str = "cpu") -> None:
        self.dtype, self.device = dtype, device
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        x = torch.randn(*shape, dtype=torch.float64, generator=self.generator)
        return x.to(self.device, self.dtype)


# Layouts.


def contiguous(x: Tensor) -> Tensor:
    return x.contiguous()


def channels_last(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last)


def sliced(x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    whole = torch.full((batch + 1, channels + 2, 2 * height + 3, width + 4), math.nan, dtype=x.dtype, device=x.device)
    part = whole[1:, 1:-1, 1 : 1 + 2 * height : 2, 3 : 3 + width]
    return part.copy_(x)


def expanded(x: Tensor) -> Tensor:
    return x[:1, :, :, :1].expand(x.shape)


LAYOUTS: list[Callable[[Tensor], Tensor]] = [contiguous, channels_last, sliced, expanded]


# Arguments of the refinement ops.

Size = tuple[int, int, int]
"""(batch, height, width) of the maps; (skip, mask, out) channels."""

FEATURE_CHANNELS = 11

# Odd and even sizes, one cell, one row, one column, no image; prime numbers of channels and single ones.
SHAPES: list[tuple[Size, Size]] = [
    ((2, 5, 7), (7, 5, 3)),
    ((1, 1, 1), (1, 1, 1)),
    ((2, 1, 1), (3, 2, 5)),
    ((1, 1, 6), (2, 3, 1)),
    ((3, 7, 1), (13, 1, 2)),
    ((1, 6, 8), (8, 4, 4)),
    ((0, 4, 3), (2, 3, 5)),
]

# What SharpMask's four stages work on, for windows of 160 pixels (section 3.2 with k = 32): side of the map, channels
# of feature, skip, mask, out.
LEVELS = [(10, 1024, 32, 32, 16), (20, 512, 16, 16, 8), (40, 256, 8, 8, 4), (80, 64, 4, 4, 2)]


def arguments(op: str, random: Random, size: Size, widths: Size, feature_channels: int = FEATURE_CHANNELS) -> list[Any]:
    """Two maps, then weights and biases."""
    (batch, height, width), (ks, km, ko) = size, widths
    mask = random(batch, km, height, width)
    if op == "add_upsample":
        return [random(batch, ko, height, width), mask, random(ko, km, 3, 3), random(ko)]
    merge = [random(ko, ks + km, 3, 3), random(ko)]
    if op == "merge_upsample":
        return [random(batch, ks, height, width), mask, *merge]
    feature = random(batch, feature_channels, height, width)
    return [feature, mask, random(ks, feature_channels, 3, 3), random(ks), *merge]


def without_biases(given: Sequence[Tensor]) -> list[Tensor | None]:
    return [None if x.ndim == 1 else x for x in given]


# Windows.


def windows_at(*cells: tuple[int, int, int, int], device: str = "cpu") -> Windows:
    """Windows at (image, scale, row, col)."""
    columns = torch.tensor(cells, dtype=torch.int64, device=device).reshape(-1, 4).T
    return Windows(torch.zeros(len(cells), device=device), *columns)


def as_rows(windows: Windows) -> list[tuple[float, int, int, int, int]]:
    return list(zip(*(field.tolist() for field in windows), strict=True))


FAR = 2**62

# Inside, over each border, in each corner, outside, far outside, twice the same; two images, two scales.
SCATTERED = [
    (0, 0, 0, 0), (1, 0, 1, 2), (1, 1, -2, 1), (0, 1, 2, -1), (0, 0, 4, 6), (1, 0, 1, 2), (1, 1, 10**9, 0),
    (0, 1, 0, -(10**9)), (0, 0, FAR, 0), (1, 1, 0, -FAR), (0, 1, -1, -1), (1, 1, 1, 1), (1, 1, 2, 1),
]  # fmt: skip


class TopDownPass:
    """Random arguments of refine_windows, and its result by the formulas, one window at a time."""

    def __init__(
        self,
        dtype: torch.dtype,
        *,
        device: str = "cpu",
        count: int = 7,
        size: int = 3,
        widths: Sequence[int] = (3, 5, 2),
        convs: int = 1,
        biases: bool = True,
    ) -> None:
        random = Random(dtype, seed=count, device=device)
        grids = [(2, 3), (4, 2)]
        index = torch.arange(count, device=device)
        # Rows and columns that leave the maps on all sides.
        row, col = (index * 7) % 5 - 1, (index * 3) % 4 - 1
        self.windows = Windows(torch.zeros(count, device=device), index // 2 % 2, index % 2, row, col)
        self.encoding = random(count, widths[0], size, size)
        self.horizontals = [
            [random(2, k, (g[0] + size) << j, (g[1] + size) << j) for j, k in enumerate(widths[1:])] for g in grids
        ]
        self.stages: list[list[tuple[Tensor, Tensor | None]]] = []
        for before, after in itertools.pairwise(widths):
            ins = [before] * convs
            outs = [*ins[1:], after]
            self.stages.append(
                [(random(o, i, 3, 3) / 3, random(o) if biases else None) for i, o in zip(ins, outs, strict=True)]
            )
        self.head = (random(1, widths[-1], 3, 3), random(1) if biases else None)

    def __call__(self, **options: Any) -> Tensor:
        return kernels.refine_windows(self.encoding, self.horizontals, self.windows, self.stages, self.head, **options)

    def formula(self, upsample: str, padding_mode: str) -> Array:
        size = self.encoding.shape[-1]
        side = size << len(self.stages)
        logits = np.empty((len(self.encoding), side, side))
        for n in range(len(self.encoding)):
            window = self.windows.select(slice(n, n + 1))
            x = array(self.encoding[n : n + 1])
            for j, convs in enumerate(self.stages):
                maps = [array(levels[j]) for levels in self.horizontals]
                horizontal = oracle.gather_windows(maps, window, size << j, 1 << j)
                for weight, bias in convs[:-1]:
                    x = oracle.relu(oracle.conv(x, array(weight), array(bias), padding_mode))
                weight, bias = convs[-1]
                x = oracle.add_upsample(horizontal, x, array(weight), array(bias), upsample, padding_mode)
            logits[n] = oracle.conv(x, array(self.head[0]), array(self.head[1]), padding_mode)[0, 0]
        return logits

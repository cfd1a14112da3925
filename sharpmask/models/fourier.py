"""A convolution with a large kernel as a product of the Fourier transforms of tiles.

A tile of T x T cells gives m x m outputs, m = T - k + 1 (overlap-save). Half of the transform says all of it, because
cells are real. Every step is a matrix product: the transform of all tiles and channels, the sum over channels at each
frequency, and the way back for those m x m outputs alone into which nothing is wrapped around the tile.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

TILES = 32
"""Tiles that are computed at once: their transforms take the memory."""
PER_BYTE = 5
"""Multiplications that take as long as reading a byte of the weights."""
TYPICAL = (20, 35)
"""Outputs, in rows and columns, for which the tiles' side is chosen."""
LARGEST = 32
"""Cells in a tile's side at most: the transforms are matrices of its fourth power."""


def convolution(weight: Tensor, bias: Tensor, *, public: bool = False) -> Callable[[Tensor], Tensor]:
    """``F.conv2d(x, weight, bias)``, by Fourier transforms where that is faster; for inference.

    weight (O, C, k, k), bias (O): their tensors are copied or kept. ``public``: by PyTorch's, which exporters know.
    """
    sides = range(weight.shape[2] + weight.shape[2] % 2 + 2, LARGEST + 1, 2)
    if weight.device.type == "cpu" and weight.dtype == torch.float32 and sides and not public:
        side = min(sides, key=lambda side: cost(weight, *TYPICAL, side))
        if cost(weight, *TYPICAL, side) < direct_cost(weight, *TYPICAL):
            return FourierConvolution(weight, bias, side)
    return partial(F.conv2d, weight=weight.contiguous(memory_format=torch.channels_last), bias=bias)


def cost(weight: Tensor, rows: int, cols: int, side: int) -> int:
    """Multiplications for rows x cols outputs by tiles of ``side``; reading the weights counts as some, too."""
    outputs, channels, kernel, _ = weight.shape
    step, count = side - kernel + 1, len(frequencies(side))
    tiles = -(-rows // step) * -(-cols // step)
    transforms = 3 * count * side**2 * channels + 2 * count * step**2 * outputs
    product = 4 * count * channels * outputs
    return tiles * (transforms + product) + PER_BYTE * 2 * count * channels * outputs * weight.element_size()


def direct_cost(weight: Tensor, rows: int, cols: int) -> int:
    """The same for PyTorch's convolution, which reads the weights twice, to change their order."""
    return weight.numel() * (rows * cols + PER_BYTE * 2 * weight.element_size())


def frequencies(side: int) -> list[tuple[int, int]]:
    """Frequencies (y, x) of a real map of ``side`` x ``side`` cells of which no two are conjugate; ``side`` is even."""
    half = side // 2
    return [(y, x) for x in range(half + 1) for y in range(side) if x not in (0, half) or y <= half]


class FourierConvolution:
    """``F.conv2d(x, weight, bias)`` of maps x (B, C, H, W) by tiles of ``side`` cells; on the CPU, in fp32.

    weight (O, C, k, k), bias (O). PyTorch's convolution runs for small maps, where it is faster, for maps with a cell
    that is not finite, which would spread over a tile, and under autocast.
    """

    def __init__(self, weight: Tensor, bias: Tensor, side: int) -> None:
        self.weight, self.bias, self.side = weight.detach(), bias.detach(), side
        self.kernel = weight.shape[2]
        self.step = side - self.kernel + 1
        cosine, sine = self._waves()
        self.forth = torch.stack([sine, cosine, -sine], 1).flatten(2).flatten(0, 1)
        """From cells (T * T) to each frequency's -imaginary, real and imaginary part."""
        self.back = self._inverse(cosine, sine)
        """From each frequency's real and imaginary part to outputs (m * m)."""
        taps = self.weight.permute(2, 3, 1, 0).reshape(self.kernel**2, -1)
        # The kernel is not flipped, so its transform is conjugated: the sign of the sine.
        self.real, self.imaginary = (
            (wave[:, : self.kernel, : self.kernel].flatten(1) @ taps).view(-1, *weight.shape[1::-1])
            for wave in (cosine, sine)
        )

    def __call__(self, x: Tensor) -> Tensor:
        rows, cols = (length - self.kernel + 1 for length in x.shape[2:])
        slow = cost(self.weight, rows, cols, self.side) >= direct_cost(self.weight, rows, cols)
        if slow or torch.is_autocast_enabled(x.device.type) or not x.sum().isfinite():
            return F.conv2d(x, self.weight, self.bias)
        down, across = -(-rows // self.step), -(-cols // self.step)
        beyond = (down * self.step - rows, across * self.step - cols)
        cells = F.pad(x, (0, beyond[1], 0, beyond[0])).permute(0, 2, 3, 1)
        out = x.new_empty(len(x), rows, cols, len(self.weight))
        at_once = max(1, TILES // (len(x) * across))
        for first in range(0, down, at_once):
            start, count = first * self.step, min(at_once, down - first)
            band = cells[:, start : start + count * self.step + self.kernel - 1]
            rows_here = out[:, start : start + count * self.step]
            torch.add(self._band(band)[:, : rows_here.shape[1], :cols], self.bias, out=rows_here)
        return out.permute(0, 3, 1, 2)

    def _band(self, cells: Tensor) -> Tensor:
        """Outputs (B, m * down, m * across, O) of cells (B, m * down + k - 1, m * across + k - 1, C)."""
        side, step = self.side, self.step
        tiles = cells.unfold(1, side, step).unfold(2, side, step).permute(4, 5, 0, 1, 2, 3)
        grid, channels = tiles.shape[2:5], tiles.shape[5]
        parts = (self.forth @ tiles.reshape(side * side, -1)).view(len(self.real), 3, -1, channels)
        # (a + ib)(c + id): real and imaginary part by c are (a, b) c, by d they are (-b, a) d.
        product = torch.bmm(parts[:, 1:].flatten(1, 2), self.real)
        product.baddbmm_(parts[:, :2].flatten(1, 2), self.imaginary)
        del parts, tiles
        out = (self.back @ product.view(2 * len(self.real), -1)).view(step, step, *grid, -1)
        return out.permute(2, 3, 0, 4, 1, 5).reshape(grid[0], grid[1] * step, grid[2] * step, -1)

    def _waves(self) -> tuple[Tensor, Tensor]:
        """Cosine and sine of each frequency at each cell: (frequencies, T, T)."""
        y, x = torch.tensor(frequencies(self.side)).T[:, :, None, None]
        cells = torch.arange(self.side)
        turns = y * cells[:, None] + x * cells
        angles = turns.remainder(self.side).double() * (2 * math.pi / self.side)
        return angles.cos().to(self.weight), angles.sin().to(self.weight)

    def _inverse(self, cosine: Tensor, sine: Tensor) -> Tensor:
        """From real and imaginary parts (2 * frequencies) to outputs: (m * m, 2 * frequencies)."""
        ends = (0, self.side // 2)
        # All others stand for their conjugates, too.
        alone = torch.tensor([y in ends and x in ends for y, x in frequencies(self.side)])
        share = torch.where(alone, 1, 2).to(cosine)[:, None, None] / self.side**2
        waves = torch.stack([cosine * share, -sine * share], 1)
        return waves[:, :, : self.step, : self.step].flatten(2).flatten(0, 1).T.contiguous()

"""``encode_windows``: from logits of windows to masks of the image, as COCO run lengths."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco
from torch import Tensor

import sharpmask_kernels as kernels
from sharpmask_kernels import Windows
from sharpmask_kernels.windows import scaled_size

from .base import Function, Plain, Randn, Workload
from .shapes import SCALES, WINDOW, best_windows


class EncodeWindows(Plain):
    """Every window is resampled at the pixels of its image, as instance segmentation does, then encoded."""

    maps = False
    traceable = False
    threshold = 0.2

    def __init__(self, windows: Windows, image_size: tuple[int, int], scales: Sequence[float]) -> None:
        super().__init__()
        self.windows, self.image_size, self.scales = windows, image_size, scales

    def forward(self, logits: Tensor) -> list[Any]:
        """Samples each window at the pixels of the image that lie in it."""
        return self.each(self.sampled, logits)

    def variants(self) -> dict[str, Function]:
        return {
            "crop-first": functools.partial(self.each, self.cropped),
            "full-size": functools.partial(self.each, self.full_size),
        }

    def each(self, encode: Function, logits: Tensor) -> list[Any]:
        cells = zip(*(field.tolist() for field in self.windows[2:]), strict=True)
        return [encode(window, *cell) for window, cell in zip(logits.float(), cells, strict=True)]

    def sampled(self, logits: Tensor, scale: int, *cell: int) -> Any:
        (rows, y), (cols, x) = self.axes(logits, scale, *cell)
        grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1)
        crop = F.grid_sample(logits[None, None], grid[None], padding_mode="border", align_corners=False)[0, 0]
        return self.pasted(crop, rows, cols)

    def cropped(self, logits: Tensor, scale: int, *cell: int) -> Any:
        """Crops the logits that lie in the image, at whole cells, and resizes them."""
        (rows, y), (cols, x) = self.axes(logits, scale, *cell)
        side = len(logits)
        (top, bottom), (left, right) = (
            (int((position[0] + 1) / 2 * side), math.ceil((position[-1] + 1) / 2 * side)) for position in (y, x)
        )
        crop = logits[None, None, top:bottom, left:right]
        return self.pasted(F.interpolate(crop, size=(len(y), len(x)), mode="bilinear")[0, 0], rows, cols)

    def full_size(self, logits: Tensor, scale: int, row: int, col: int) -> Any:
        """Pastes the window into the whole scaled image, and resizes that."""
        side = len(logits)
        height, width = scaled_size(*self.image_size, self.scales[scale])
        # A window may reach half its side beyond the image, and somewhat more below and to the right.
        canvas = logits.new_full((1, 1, height + 2 * side, width + 2 * side), -1e4)
        canvas[..., 16 * row : 16 * row + side, 16 * col : 16 * col + side] = logits
        half = side // 2
        inside = canvas[..., half : half + height, half : half + width]
        return self.pasted(F.interpolate(inside, size=self.image_size, mode="bilinear")[0, 0], slice(None), slice(None))

    def pasted(self, crop: Tensor, rows: slice, cols: slice) -> Any:
        mask = np.zeros(self.image_size, dtype=np.uint8, order="F")
        mask[rows, cols] = (crop > math.log(self.threshold / (1 - self.threshold))).cpu().numpy()
        return coco.encode(mask)

    def axes(self, logits: Tensor, scale: int, *cell: int) -> list[tuple[slice, Tensor]]:
        ends = zip(self.image_size, cell, strict=True)
        return [self.samples(length, self.scales[scale], first, logits) for length, first in ends]

    def samples(self, length: int, scale: float, cell: int, logits: Tensor) -> tuple[slice, Tensor]:
        """The pixels of the image that lie in a window, along one axis, and their positions in it, from -1 to 1."""
        side = len(logits)
        pixels = torch.arange(length, dtype=torch.float64, device=logits.device)
        position = (pixels + 0.5) * (scaled_size(length, length, scale)[0] / length) + side / 2 - 16 * cell
        inside = ((position >= 0) & (position < side)).nonzero()[:, 0]
        first, last = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)
        return slice(first, last), (2 * position[first:last] / side - 1).to(logits.dtype)

    def op(self, backend: str, *inputs: Tensor) -> list[dict[str, Any]]:
        (logits,) = inputs
        return kernels.encode_windows(
            logits, self.windows, self.image_size, self.scales, threshold=self.threshold, backend=backend
        )


def workload(count: int, photo: tuple[int, int]) -> Workload:
    def inputs(randn: Randn) -> tuple[Tensor, ...]:
        # Masks of a few blobs each. Noise would have far more runs than objects have.
        blobs = F.interpolate(4 * randn(count, 1, 6, 6), size=(WINDOW, WINDOW), mode="bicubic")
        return (blobs[:, 0],)

    return Workload(
        "encode_windows",
        f"{count}x{WINDOW}x{WINDOW}",
        lambda device: EncodeWindows(best_windows(count, photo, device), photo, SCALES),
        inputs,
    )

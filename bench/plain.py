"""Parts of a model as people write them in plain PyTorch, each beside the op that takes its place.

``forward`` is what the measurements call eager: layers and operations of PyTorch, and pycocotools. ``op`` computes the
same from the same parameters with one op of :mod:`sharpmask_kernels`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco
from torch import Tensor, nn

import sharpmask_kernels as kernels
from sharpmask_kernels import Windows


class Plain(nn.Module):
    """One part of a model. Inputs are tensors only; all else is the module's."""

    maps = True
    """Whether the inputs are maps, which have a memory format."""
    traceable = True
    """Whether ``forward`` has no loop over windows, so that a compiler can take it whole."""

    def op(self, backend: str, *inputs: Tensor) -> Any:
        raise NotImplementedError


def up2(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class MergeUpsample(Plain):
    def __init__(self, skip_channels: int, mask_channels: int, out_channels: int) -> None:
        super().__init__()
        self.merge = nn.Conv2d(skip_channels + mask_channels, out_channels, 3, padding=1)

    def forward(self, skip: Tensor, mask: Tensor) -> Tensor:
        return up2(F.relu(self.merge(torch.cat([skip, mask], dim=1))))

    def op(self, backend: str, *inputs: Tensor) -> Tensor:
        skip, mask = inputs
        return kernels.merge_upsample(skip, mask, self.merge.weight, self.merge.bias, backend=backend)


class Refine(MergeUpsample):
    def __init__(self, feature_channels: int, skip_channels: int, mask_channels: int, out_channels: int) -> None:
        super().__init__(skip_channels, mask_channels, out_channels)
        self.skip = nn.Conv2d(feature_channels, skip_channels, 3, padding=1)

    def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
        return super().forward(F.relu(self.skip(feature)), mask)

    def op(self, backend: str, *inputs: Tensor) -> Tensor:
        feature, mask = inputs
        skip, merge = self.skip, self.merge
        return kernels.refine(feature, mask, skip.weight, skip.bias, merge.weight, merge.bias, backend=backend)


class AddUpsample(Plain):
    def __init__(self, mask_channels: int, out_channels: int) -> None:
        super().__init__()
        self.vertical = nn.Conv2d(mask_channels, out_channels, 3, padding=1, bias=False)

    def forward(self, horizontal: Tensor, mask: Tensor) -> Tensor:
        return up2(F.relu(horizontal + self.vertical(mask)))

    def op(self, backend: str, *inputs: Tensor) -> Tensor:
        horizontal, mask = inputs
        return kernels.add_upsample(horizontal, mask, self.vertical.weight, None, backend=backend)


def cut(maps: Sequence[Tensor], windows: Windows, size: int, step: int) -> Tensor:
    """The windows one after another, none of which leaves its map."""
    crops = []
    for image, scale, row, col in zip(*(field.tolist() for field in windows[1:]), strict=True):
        top, left = row * step, col * step
        crops.append(maps[scale][image, :, top : top + size, left : left + size])
    return torch.stack(crops)


class GatherWindows(Plain):
    traceable = False

    def __init__(self, windows: Windows, size: int, step: int) -> None:
        super().__init__()
        self.windows, self.size, self.step = windows, size, step

    def forward(self, *maps: Tensor) -> Tensor:
        return cut(maps, self.windows, self.size, self.step)

    def op(self, backend: str, *inputs: Tensor) -> Tensor:
        return kernels.gather_windows(inputs, self.windows, self.size, step=self.step, backend=backend)


class RefineWindows(Plain):
    """All stages on all windows in one batch. Inputs: the encoding, then the horizontal maps, scale by scale."""

    traceable = False

    def __init__(self, windows: Windows, size: int, mask_channels: Sequence[int]) -> None:
        super().__init__()
        self.windows, self.size = windows, size
        # As SharpMask has them: replicate padding, and the bias in the horizontal half.
        widths = itertools.pairwise(mask_channels)
        self.stages = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, padding_mode="replicate", bias=False) for a, b in widths
        )
        self.head = nn.Conv2d(mask_channels[-1], 1, 3, padding=1, padding_mode="replicate")

    def forward(self, encoding: Tensor, *horizontals: Tensor) -> Tensor:
        x = encoding
        for j, vertical in enumerate(self.stages):
            crops = cut(horizontals[j :: len(self.stages)], self.windows, self.size << j, 1 << j)
            x = up2(F.relu(crops + vertical(x)))
        logits: Tensor = self.head(x)[:, 0]
        return logits

    def op(self, backend: str, *inputs: Tensor) -> Tensor:
        encoding, *maps = inputs
        count = len(self.stages)
        horizontals = [maps[i : i + count] for i in range(0, len(maps), count)]
        stages = [[(weight, None)] for weight in self.stages.parameters()]
        head = (self.head.weight, self.head.bias)
        return kernels.refine_windows(
            encoding, horizontals, self.windows, stages, head, padding_mode="replicate", backend=backend
        )


class EncodeWindows(Plain):
    """Logits to run lengths: every window is resampled at the pixels of its image, as instance segmentation does."""

    maps = False
    traceable = False
    threshold = 0.2

    def __init__(self, windows: Windows, image_size: tuple[int, int], scales: Sequence[float]) -> None:
        super().__init__()
        self.windows, self.image_size, self.scales = windows, image_size, scales

    def forward(self, logits: Tensor) -> list[Any]:
        cells = zip(*(field.tolist() for field in self.windows[2:]), strict=True)
        return [self.encode(*window) for window in zip(logits.float(), cells, strict=True)]

    def encode(self, logits: Tensor, cell: tuple[int, int, int]) -> Any:
        scale, *start = cell
        (rows, y), (cols, x) = (
            self.samples(length, self.scales[scale], first, logits)
            for length, first in zip(self.image_size, start, strict=True)
        )
        grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1)
        crop = F.grid_sample(logits[None, None], grid[None], padding_mode="border", align_corners=False)[0, 0]
        mask = np.zeros(self.image_size, dtype=np.uint8, order="F")
        mask[rows, cols] = (crop.sigmoid() > self.threshold).cpu().numpy()
        return coco.encode(mask)

    def samples(self, length: int, scale: float, cell: int, logits: Tensor) -> tuple[slice, Tensor]:
        """The image pixels that lie in a window, along one axis, and where in it, from -1 to 1."""
        side = len(logits)
        pixels = torch.arange(length, dtype=torch.float64, device=logits.device)
        position = (pixels + 0.5) * (max(1, round(length * scale)) / length) + side / 2 - 16 * cell
        inside = ((position >= 0) & (position < side)).nonzero()[:, 0]
        first, last = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)
        return slice(first, last), (2 * position[first:last] / side - 1).to(logits.dtype)

    def op(self, backend: str, *inputs: Tensor) -> list[dict[str, Any]]:
        (logits,) = inputs
        return kernels.encode_windows(
            logits, self.windows, self.image_size, self.scales, threshold=self.threshold, backend=backend
        )

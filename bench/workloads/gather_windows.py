"""``gather_windows``: the maps of a refinement module, cut out at the best windows of a photo."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import sharpmask_kernels as kernels
from sharpmask_kernels import Windows

from .base import Plain, Workload
from .shapes import CELLS, best_windows, pyramid


def cut(maps: Sequence[Tensor], windows: Windows, size: int, step: int) -> Tensor:
    """The windows one after another. None may leave its map."""
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


def workload(stage: int, count: int, photo: tuple[int, int]) -> Workload:
    size = CELLS << stage
    return Workload(
        "gather_windows",
        f"stage{stage + 1}-{count}x{size}x{size}",
        lambda device: GatherWindows(best_windows(count, photo, device), size, 1 << stage),
        lambda randn: tuple(pyramid(randn, photo, stage)),
    )

"""The three forms of the refinement module: ``merge_upsample``, ``refine`` and ``add_upsample``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sharpmask_kernels as kernels

from .base import Plain, Randn, Workload, up2
from .shapes import LEVELS


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


class RefineAll(Plain):
    """Refinement modules in a row, each on the result of the one before. Inputs: the mask encoding, the features."""

    def __init__(self, levels: Sequence[tuple[int, int, int, int]]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(Refine(*channels) for channels in levels)

    def forward(self, mask: Tensor, *features: Tensor) -> Tensor:
        for level, feature in zip(self.levels, features, strict=True):
            mask = level(feature, mask)
        return mask

    def op(self, backend: str, *inputs: Tensor) -> Tensor:
        mask, *features = inputs
        for level, feature in zip(self.levels, features, strict=True):
            mask = cast(Refine, level).op(backend, feature, mask)
        return mask


class AddUpsample(Plain):
    def __init__(self, mask_channels: int, out_channels: int) -> None:
        super().__init__()
        self.vertical = nn.Conv2d(mask_channels, out_channels, 3, padding=1, bias=False)

    def forward(self, horizontal: Tensor, mask: Tensor) -> Tensor:
        return up2(F.relu(horizontal + self.vertical(mask)))

    def op(self, backend: str, *inputs: Tensor) -> Tensor:
        horizontal, mask = inputs
        return kernels.add_upsample(horizontal, mask, self.vertical.weight, None, backend=backend)


def workload(op: str, level: int, batch: int) -> Workload:
    """One form of the refinement module at one level, on the maps of a batch of windows."""
    side, feature, skip, mask, out = LEVELS[level]
    module, channels = {
        "merge_upsample": (lambda _: MergeUpsample(skip, mask, out), (skip, mask)),
        "refine": (lambda _: Refine(feature, skip, mask, out), (feature, mask)),
        "add_upsample": (lambda _: AddUpsample(mask, out), (out, mask)),
    }[op]
    shape = f"level{level + 1}-{batch}x{side}x{side}"
    return Workload(op, shape, module, lambda randn: tuple(randn(batch, c, side, side) for c in channels))


def all_levels(batch: int, feature: int | None = None) -> Workload:
    """``refine`` at all four levels, one after another. With ``feature``, every feature has so many channels."""
    widths = [(feature or f, skip, mask, out) for _, f, skip, mask, out in LEVELS]

    def inputs(randn: Randn) -> tuple[Tensor, ...]:
        sides = [side for side, *_ in LEVELS]
        features = (randn(batch, w[0], side, side) for w, side in zip(widths, sides, strict=True))
        return randn(batch, LEVELS[0][3], sides[0], sides[0]), *features

    name = "all-levels" if feature is None else f"all-levels-of-{feature}"
    return Workload("refine", f"{name}-{batch}", lambda _: RefineAll(widths), inputs)

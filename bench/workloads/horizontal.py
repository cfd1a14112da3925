"""``horizontal``: what the windows of an image share of a refinement module, on the maps of a whole photo."""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

import sharpmask_kernels as kernels
from sharpmask_kernels.windows import scaled_size

from .base import Plain, Randn, Workload, parameters
from .shapes import CELLS, LEVELS, WINDOW, grid_size

HIDDEN = 64
"""Channels between a skip's two convolutions (SharpMask, section 5)."""


class Horizontal(Plain):
    """Convolutions that pad by replication, ReLU between them."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, padding_mode="replicate") for a, b in itertools.pairwise(widths)
        )

    def forward(self, feature: Tensor) -> Tensor:
        first, *rest = self.convs
        x = first(feature)
        for conv in rest:
            x = conv(F.relu(x))
        return x

    def op(self, backend: str, *inputs: Tensor) -> Tensor:
        (feature,) = inputs
        convs = [parameters(conv) for conv in self.convs]
        return kernels.horizontal(feature, convs, padding_mode="replicate", backend=backend)


def workload(level: int, photo: tuple[int, int]) -> Workload:
    _, feature, skip, _, out = LEVELS[level]
    rows, cols = (cells + CELLS - 1 << level for cells in grid_size(*scaled_size(*photo, 1), WINDOW))

    def inputs(randn: Randn) -> tuple[Tensor, ...]:
        return (randn(1, feature, rows, cols),)

    widths = (feature, HIDDEN, skip, out)
    return Workload("horizontal", f"{feature}x{rows}x{cols}", lambda device: Horizontal(*widths).to(device), inputs)

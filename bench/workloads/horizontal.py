"""``horizontal``: what the windows of an image share of a refinement module.

Forward on the maps of a whole photo; in training on those of patches, whose features are frozen.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

import sharpmask_kernels as kernels
from sharpmask_kernels.windows import scaled_size

from .base import Plain, Randn, Workload
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
        # Positive like the inputs: no value near 0, where rounding decides what ReLU lets through.
        for parameter in self.parameters():
            parameter.data.abs_()

    def forward(self, feature: Tensor) -> Tensor:
        first, *rest = self.convs
        x = first(feature)
        for conv in rest:
            x = conv(F.relu(x))
        return x

    def op(self, backend: str, *inputs: Tensor) -> Tensor:
        (feature,) = inputs
        convs = [(conv.weight, conv.bias) for conv in cast(Iterable[nn.Conv2d], self.convs)]
        return kernels.horizontal(feature, convs, padding_mode="replicate", backend=backend)


def workload(level: int, photo: tuple[int, int]) -> Workload:
    _, feature, skip, _, out = LEVELS[level]
    rows, cols = (cells + CELLS - 1 << level for cells in grid_size(*scaled_size(*photo, 1), WINDOW))

    return _workload((1, feature, rows, cols), (feature, HIDDEN, skip, out))


def training(level: int, batch: int) -> Workload:
    """On patches of a window with its context, two cells of stride 16 more."""
    side, feature, skip, _, out = LEVELS[level]
    padded = side + (2 << level)
    made = _workload((batch, feature, padded, padded), (feature, HIDDEN, skip, out))
    return made._replace(training=True, frozen=frozenset({0}))


def _workload(shape: tuple[int, ...], widths: tuple[int, ...]) -> Workload:
    def inputs(randn: Randn) -> tuple[Tensor, ...]:
        return (randn(*shape).abs(),)

    return Workload("horizontal", "x".join(map(str, shape[1:])), lambda device: Horizontal(*widths).to(device), inputs)

"""``inverted_residual``: the blocks of EfficientNet-Lite0 (Tan and Le, 2019) on a whole photo."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

import sharpmask_kernels as kernels

from .base import Plain, Randn, Workload, parameters


class Block(NamedTuple):
    """A block's channels, kernel and strides, and that of its input in the image."""

    channels: int
    hidden: int
    outputs: int
    kernel: int
    stride: int
    step: int


BLOCKS = [Block(16, 96, 24, 3, 2, 2), Block(40, 240, 40, 5, 1, 8), Block(112, 672, 112, 5, 1, 16)]


class InvertedResidual(Plain):
    """Expansion, depthwise convolution and projection, padded as TensorFlow does."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        channels, hidden, outputs, kernel, stride, _ = block
        self.expand = nn.Conv2d(channels, hidden, 1)
        self.depthwise = nn.Conv2d(hidden, hidden, kernel, stride, groups=hidden)
        self.project = nn.Conv2d(hidden, outputs, 1)
        self.stride, self.residual = stride, stride == 1 and channels == outputs
        before = (kernel - stride) // 2
        self.border = (before, kernel - 1 - before) * 2

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu6(self.depthwise(F.pad(F.relu6(self.expand(x)), self.border)))
        out = self.project(hidden)
        return x + out if self.residual else out

    def op(self, backend: str, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        expand, depthwise, project = (parameters(conv) for conv in (self.expand, self.depthwise, self.project))
        return kernels.inverted_residual(
            x, expand, depthwise, project, stride=self.stride, residual=self.residual, backend=backend
        )


def workload(block: Block, photo: tuple[int, int]) -> Workload:
    height, width = (-(-length // block.step) for length in photo)

    def inputs(randn: Randn) -> tuple[Tensor, ...]:
        return (randn(1, block.channels, height, width),)

    shape = f"{block.channels}x{height}x{width} k{block.kernel} s{block.stride}"
    return Workload("inverted_residual", shape, lambda device: InvertedResidual(block).to(device), inputs)

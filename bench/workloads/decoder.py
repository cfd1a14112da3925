"""``upsample_merge`` and ``upsample_add``: the steps of decoders that upsample first, on one image.

The levels of segmentation_models_pytorch's Unet with a ResNet-34 encoder (normalisation folded), on 512x512 pixels;
of a depth network as monodepth2 is built (Godard et al., 2019), on 640x192; and the sums of a feature pyramid network
of 256 channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sharpmask_kernels as kernels

from .base import Plain, Randn, Workload


class Level(NamedTuple):
    """Channels of mask, skip (0: there is none) and result, and the mask's stride in the image."""

    mask: int
    skip: int
    out: int
    stride: int


UNET = [
    Level(512, 256, 256, 32),
    Level(256, 128, 128, 16),
    Level(128, 64, 64, 8),
    Level(64, 64, 32, 4),
    Level(32, 0, 16, 2),
]
DEPTH = [
    Level(256, 256, 256, 32), Level(128, 128, 128, 16), Level(64, 64, 64, 8), Level(32, 64, 32, 4), Level(16, 0, 16, 2)
]  # fmt: skip
PYRAMID_CHANNELS = 256
PYRAMID_STRIDES = (32, 8)


class Decoder(NamedTuple):
    name: str
    levels: list[Level]
    activation: str
    image: tuple[int, int]
    """Height and width."""


def decoders(small: bool) -> list[Decoder]:
    unet, depth = ((64, 64), (64, 96)) if small else ((512, 512), (192, 640))
    return [Decoder("unet", UNET, "relu", unet), Decoder("depth", DEPTH, "elu", depth)]


def large(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


class UpsampleMerge(Plain):
    def __init__(self, level: Level, activation: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(level.mask + level.skip, level.out, 3, padding=1)
        self.activation = activation

    def forward(self, mask: Tensor, *skip: Tensor) -> Tensor:
        merged = self.conv(torch.cat([large(mask), *skip], dim=1))
        return F.relu(merged) if self.activation == "relu" else F.elu(merged)

    def op(self, backend: str, *inputs: Tensor) -> Tensor:
        mask, skip = inputs if len(inputs) == 2 else (inputs[0], None)
        conv, activation = self.conv, self.activation
        return kernels.upsample_merge(mask, skip, conv.weight, conv.bias, activation=activation, backend=backend)


class UpsampleAdd(Plain):
    def forward(self, mask: Tensor, lateral: Tensor) -> Tensor:
        return lateral + large(mask)

    def op(self, backend: str, *inputs: Tensor) -> Tensor:
        return kernels.upsample_add(*inputs, backend=backend)


def merges(small: bool) -> list[Workload]:
    return [_merge(decoder, level) for decoder in decoders(small) for level in decoder.levels]


def _merge(decoder: Decoder, level: Level) -> Workload:
    height, width = (length // level.stride for length in decoder.image)

    def inputs(randn: Randn) -> tuple[Tensor, ...]:
        mask = randn(1, level.mask, height, width)
        return (mask, randn(1, level.skip, 2 * height, 2 * width)) if level.skip else (mask,)

    shape = f"{decoder.name} {level.mask}+{level.skip}-{level.out}x{2 * height}x{2 * width}"
    return Workload("upsample_merge", shape, lambda device: UpsampleMerge(level, decoder.activation).to(device), inputs)


def adds(small: bool) -> list[Workload]:
    return [_add(stride, (64, 64) if small else (512, 512)) for stride in PYRAMID_STRIDES]


def _add(stride: int, image: tuple[int, int]) -> Workload:
    channels = PYRAMID_CHANNELS
    height, width = (length // stride for length in image)

    def inputs(randn: Randn) -> tuple[Tensor, ...]:
        return randn(1, channels, height, width), randn(1, channels, 2 * height, 2 * width)

    return Workload("upsample_add", f"{channels}x{2 * height}x{2 * width}", lambda _: UpsampleAdd(), inputs)

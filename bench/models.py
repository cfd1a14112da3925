"""Whole models whose decoders ``fuse`` speeds up, with random weights: models by others, and a depth decoder."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Built = tuple[nn.Module, tuple[Any, ...]]
"""A module and the arguments of a call."""


class Case(NamedTuple):
    """A row of the table."""

    model: str
    size: tuple[int, int]
    """Rows and columns of the image."""
    part: str
    """What of the model runs."""
    build: Callable[[tuple[int, int], bool], Built]
    """Takes the image's size and whether the model is to be small."""
    training: bool = False
    """Whether the gradients of all parameters are computed too."""

    @property
    def name(self) -> str:
        height, width = self.size
        return f"{self.model} {height}x{width}, {self.part}"


def cases(small: bool) -> list[Case]:
    """The models, on one image each."""
    large, middle, depth = ((64, 64), (64, 64), (64, 96)) if small else ((512, 512), (256, 256), (192, 640))
    decoder = "decoder"
    return [
        Case("smp Unet", large, decoder, functools.partial(of_smp, "Unet")),
        Case("smp Unet", large, "whole model", functools.partial(of_smp, "Unet", whole=True)),
        Case("smp Unet", large, "decoder, training step", functools.partial(of_smp, "Unet"), training=True),
        Case("smp FPN", large, decoder, functools.partial(of_smp, "FPN")),
        Case("MONAI BasicUNet", middle, "whole model", basic_unet),
        Case("depth decoder", depth, decoder, depth_decoder),
    ]


def of_smp(name: str, size: tuple[int, int], small: bool, whole: bool = False) -> Built:
    """A model of segmentation_models_pytorch with a ResNet-34, or its decoder and the encoder's maps."""
    import segmentation_models_pytorch as smp

    narrow = {"decoder_channels": (16,) * 5} if small and name == "Unet" else {}
    model = getattr(smp, name)("resnet18" if small else "resnet34", encoder_weights=None, **narrow)
    image = torch.randn(1, 3, *size)
    if whole:
        return model, (image,)
    with torch.no_grad():
        return model.decoder, (model.encoder.eval()(image),)


def basic_unet(size: tuple[int, int], small: bool) -> Built:
    """MONAI's BasicUNet with the upsampling that is not learnt."""
    from monai.networks.nets import BasicUNet

    widths = (4, 4, 8, 8, 16, 4) if small else (32, 32, 64, 128, 256, 32)
    return BasicUNet(2, 3, 2, widths, upsample="nontrainable"), (torch.randn(1, 3, *size),)


def depth_decoder(size: tuple[int, int], small: bool) -> Built:
    """With the widths of monodepth2, for the maps of a ResNet-18."""
    encoder, widths = (64, 64, 128, 256, 512), (16, 32, 64, 128, 256)
    if small:
        encoder, widths = (4, 4, 8, 8, 16), (4, 4, 8, 8, 8)
    maps = [torch.randn(1, width, *(side >> i + 1 for side in size)) for i, width in enumerate(encoder)]
    return DepthDecoder(encoder, widths), (maps,)


class Conv3x3(nn.Module):
    def __init__(self, ins: int, outs: int, reflect: bool) -> None:
        super().__init__()
        self.pad = nn.ReflectionPad2d(1) if reflect else nn.ZeroPad2d(1)
        self.conv = nn.Conv2d(ins, outs, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.pad(x))


class ConvBlock(nn.Module):
    def __init__(self, ins: int, outs: int, reflect: bool) -> None:
        super().__init__()
        self.conv = Conv3x3(ins, outs, reflect)
        self.nonlin = nn.ELU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.nonlin(self.conv(x))


def upsample(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


class DepthDecoder(nn.Module):
    """In the style of monodepth2 (Godard et al., 2019): ELU, padding by reflection, layers in a dictionary, outputs
    kept on the module. ``encoder`` and ``widths`` are the channels of each level, the finest first."""

    def __init__(self, encoder: tuple[int, ...], widths: tuple[int, ...], reflect: bool = True) -> None:
        super().__init__()
        self.levels = len(widths)
        self.convs: dict[tuple[str, int] | tuple[str, int, int], nn.Module] = OrderedDict()
        for i in reversed(range(self.levels)):
            ins = encoder[-1] if i == self.levels - 1 else widths[i + 1]
            self.convs["upconv", i, 0] = ConvBlock(ins, widths[i], reflect)
            skip = encoder[i - 1] if i > 0 else 0
            self.convs["upconv", i, 1] = ConvBlock(widths[i] + skip, widths[i], reflect)
            self.convs["dispconv", i] = Conv3x3(widths[i], 1, reflect)
        self.decoder = nn.ModuleList(self.convs.values())
        self.sigmoid = nn.Sigmoid()

    def forward(self, input_features: list[Tensor]) -> dict[tuple[str, int], Tensor]:
        self.outputs = {}
        x = input_features[-1]
        for i in range(self.levels - 1, -1, -1):
            x = self.convs["upconv", i, 0](x)
            maps = [upsample(x)]
            if i > 0:
                maps += [input_features[i - 1]]
            x = torch.cat(maps, 1)
            x = self.convs["upconv", i, 1](x)
            self.outputs["disp", i] = self.sigmoid(self.convs["dispconv", i](x))
        return self.outputs

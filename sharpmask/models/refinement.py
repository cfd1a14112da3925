"""The two forms of a refinement module: the paper's (section 3) and the released code's."""

from __future__ import annotations

import itertools
from typing import Final, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharpmask_kernels import add_upsample, horizontal

from .inference import is_plain

ConvParameters: TypeAlias = tuple[Tensor, Tensor | None]

PADDING: Final = "replicate"
"""The released code pads symmetrically, which for one cell is the same. No border of zeros enters a mask."""


def conv3x3(channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out_channels, 3, padding=1, padding_mode=PADDING)


def padded_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        # PyTorch 2.14 does not compile the gradient of this padding for CPUs: findings/torch_compile_replicate_pad.sh
        x = torch.cat([x[:, :, :1], x, x[:, :, -1:]], 2)
        return F.conv2d(torch.cat([x[..., :1], x, x[..., -1:]], 3), weight, bias)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode=PADDING), weight, bias)


class RefinementModule(nn.Module):
    """One stage: feature F and mask encoding M -> mask encoding of twice the size.

    Both forms are M' = up2(ReLU(horizontal(F) + vertical(M))). The horizontal half depends on F alone, so it is
    computed once per image; the vertical half is computed per window.
    """

    upsample: str
    """"bilinear" or "nearest"."""

    def horizontal_convs(self) -> list[ConvParameters]:
        """Weights and biases of the horizontal convolutions, ReLU between them."""
        raise NotImplementedError

    def horizontal(self, feature: Tensor, needed: Tensor | None = None, tile: int = 1) -> Tensor:
        """feature (B, Kf, H, W) -> (B, Ko, H, W), which may be 0 in tiles that are not ``needed``: see the op."""
        if not all(map(is_plain, self.children())):  # hooks and wrappers, which calls run
            return self.called(feature)
        return horizontal(feature, self.horizontal_convs(), needed=needed, tile=tile, padding_mode=PADDING)

    def called(self, feature: Tensor) -> Tensor:
        """The horizontal convolutions of a whole map by calls of the modules."""
        raise NotImplementedError

    def vertical(self) -> list[ConvParameters]:
        """Weights and biases of the vertical convolutions, ReLU between them."""
        raise NotImplementedError

    def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
        """The whole module: feature (B, Kf, H, W), mask (B, Km, H, W) -> (B, Ko, 2H, 2W)."""
        return self.add(self.horizontal(feature), mask)

    def add(self, horizontal: Tensor, mask: Tensor) -> Tensor:
        """The vertical half and the sum: horizontal (B, Ko, H, W), mask (B, Km, H, W) -> (B, Ko, 2H, 2W)."""
        *first, (weight, bias) = self.vertical()
        for conv in first:
            mask = F.relu(padded_conv(mask, *conv))
        return add_upsample(horizontal, mask, weight, bias, upsample=self.upsample, padding_mode=PADDING)


class PaperRefinement(RefinementModule):
    """The paper's module: skip S from F, concatenation with M, one convolution, ReLU, bilinear upsampling.

    The skip has two convolutions with ``skip_hidden`` channels between them (section 5), or a single one if that is
    0 (section 3.2).
    """

    upsample = "bilinear"

    def __init__(
        self,
        feature_channels: int,
        mask_channels: int,
        out_channels: int,
        skip_channels: int,
        skip_hidden: int = 64,
    ) -> None:
        super().__init__()
        self.skip_channels = skip_channels
        widths = [feature_channels, *([skip_hidden] if skip_hidden else []), skip_channels]
        self.skip = nn.ModuleList(conv3x3(a, b) for a, b in itertools.pairwise(widths))
        self.merge = conv3x3(skip_channels + mask_channels, out_channels)

    def horizontal_convs(self) -> list[ConvParameters]:
        skips = [(conv.weight, conv.bias) for conv in cast(list[nn.Conv2d], self.skip)]
        return [*skips, (self.merge.weight[:, : self.skip_channels], self.merge.bias)]

    def called(self, feature: Tensor) -> Tensor:
        for conv in self.skip:
            feature = F.relu(conv(feature))
        return padded_conv(feature, self.merge.weight[:, : self.skip_channels], self.merge.bias)

    def vertical(self) -> list[ConvParameters]:
        return [(self.merge.weight[:, self.skip_channels :], None)]


class ReleasedRefinement(RefinementModule):
    """The released code's module: three horizontal and two vertical convolutions, their sum, ReLU, nearest upsampling.

    The first horizontal convolution has 64 output channels, or half as many as F where that is less.
    """

    upsample = "nearest"

    def __init__(self, feature_channels: int, mask_channels: int, out_channels: int, skip_channels: int) -> None:
        super().__init__()
        hidden = min(64, feature_channels // 2)
        self.h = nn.Sequential(
            conv3x3(feature_channels, hidden),
            nn.ReLU(),
            conv3x3(hidden, skip_channels),
            nn.ReLU(),
            conv3x3(skip_channels, out_channels),
        )
        self.v = nn.ModuleList([conv3x3(mask_channels, mask_channels), conv3x3(mask_channels, out_channels)])

    def horizontal_convs(self) -> list[ConvParameters]:
        return [(conv.weight, conv.bias) for conv in self.h if isinstance(conv, nn.Conv2d)]

    def called(self, feature: Tensor) -> Tensor:
        return self.h(feature)

    def vertical(self) -> list[ConvParameters]:
        return [(conv.weight, conv.bias) for conv in cast(list[nn.Conv2d], self.v)]

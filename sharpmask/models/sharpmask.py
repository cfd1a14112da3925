"""SharpMask: DeepMask with a top-down refinement of its mask encoding (section 3)."""

from __future__ import annotations

import itertools
from typing import Final, NamedTuple, TypeAlias, cast

import torch.nn.functional as F
from torch import Tensor, nn

from sharpmask_kernels import Windows, add_upsample, gather_windows, refine, refine_windows

from .deepmask import DeepMask
from .trunk import Trunk

ConvParameters: TypeAlias = tuple[Tensor, Tensor | None]

PADDING: Final = "replicate"
"""The released code pads symmetrically, which for one cell is this; so no border of zeros enters a mask."""


def conv3x3(channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out_channels, 3, padding=1, padding_mode=PADDING)


class RefinementModule(nn.Module):
    """One stage: feature F and mask encoding M -> mask encoding of twice the size.

    Both forms split into a horizontal half, of F alone and so computed once per image, and a vertical half
    of M, computed per window: M' = up2(ReLU(horizontal(F) + vertical(M))).
    """

    upsample: str

    def horizontal(self, feature: Tensor) -> Tensor:
        """feature (B, Kf, H, W) -> (B, Ko, H, W)."""
        raise NotImplementedError

    def vertical(self) -> list[ConvParameters]:
        """Weights and biases of the vertical convolutions, ReLU between them."""
        raise NotImplementedError

    def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
        """The module as it is written down: feature (B, Kf, H, W), mask (B, Km, H, W) -> (B, Ko, 2H, 2W)."""
        return self.add(self.horizontal(feature), mask)

    def add(self, horizontal: Tensor, mask: Tensor) -> Tensor:
        """The vertical half: horizontal (B, Ko, H, W), mask (B, Km, H, W) -> (B, Ko, 2H, 2W)."""
        *first, (weight, bias) = self.vertical()
        for w, b in first:
            mask = F.relu(F.conv2d(F.pad(mask, (1, 1, 1, 1), mode=PADDING), w, b))
        return add_upsample(horizontal, mask, weight, bias, upsample=self.upsample, padding_mode=PADDING)


class PaperRefinement(RefinementModule):
    """The paper's module: skip S from F, concatenation with M, one convolution, ReLU, bilinear upsampling.

    The skip has two convolutions, over ``skip_hidden`` channels (section 5), or one if that is 0 (section 3.2).
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

    def _hidden(self, feature: Tensor) -> Tensor:
        """What the last convolution of the skip gets."""
        for conv in self.skip[:-1]:
            feature = F.relu(conv(feature))
        return feature

    def horizontal(self, feature: Tensor) -> Tensor:
        skip = F.relu(self.skip[-1](self._hidden(feature)))
        weight = self.merge.weight[:, : self.skip_channels]
        return F.conv2d(F.pad(skip, (1, 1, 1, 1), mode=PADDING), weight, self.merge.bias)

    def vertical(self) -> list[ConvParameters]:
        return [(self.merge.weight[:, self.skip_channels :], None)]

    def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
        skip, merge = cast(nn.Conv2d, self.skip[-1]), self.merge
        return refine(
            self._hidden(feature),
            mask,
            skip.weight,
            skip.bias,
            merge.weight,
            merge.bias,
            upsample=self.upsample,
            padding_mode=PADDING,
        )


class ReleasedRefinement(RefinementModule):
    """The released code's module: three horizontal and two vertical convolutions, summed; nearest upsampling.

    The first horizontal convolution goes to 64 channels, or half of F's where that is less.
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

    def horizontal(self, feature: Tensor) -> Tensor:
        return self.h(feature)

    def vertical(self) -> list[ConvParameters]:
        return [(conv.weight, conv.bias) for conv in cast(list[nn.Conv2d], self.v)]


class Refined(NamedTuple):
    """What a SharpMask gives for N windows: the logits of both masks and the score."""

    coarse: Tensor
    """(N, side, side)"""
    refined: Tensor
    """(N, S, S)"""
    score: Tensor
    """(N)"""


class SharpMask(DeepMask):
    """DeepMask, whose mask head it keeps, with four refinement modules on top.

    ``mask_channels``: widths of the mask encodings M1 .. M5; ``skip_channels``: of the skips S1 .. S4. The
    paper's k_m = k_s = k / 2^(i-1) with k = 32 is the default. ``crop_first``: whether training patches crop the
    trunk's maps before the horizontal convolutions (as the released code) or after, as full images see them.
    """

    def __init__(
        self,
        trunk: Trunk,
        *,
        refinement: str = "paper",
        mask_channels: tuple[int, ...] = (32, 16, 8, 4, 2),
        skip_channels: tuple[int, ...] = (32, 16, 8, 4),
        skip_hidden: int = 64,
        crop_first: bool = False,
        window: int = 160,
        context: int = 32,
        features: int = 128,
        code: int = 512,
        mask_side: int = 56,
        score_hidden: int = 1024,
    ) -> None:
        super().__init__(
            trunk,
            window=window,
            context=context,
            features=features,
            code=code,
            mask_side=mask_side,
            score_hidden=score_hidden,
        )
        stages = len(trunk.channels)
        if len(mask_channels) != stages + 1 or len(skip_channels) != stages:
            raise ValueError(
                f"mask_channels and skip_channels must have {stages + 1} and {stages} entries, "
                f"got {len(mask_channels)} and {len(skip_channels)}"
            )
        self.crop_first = crop_first
        self.encoding = nn.Linear(code, mask_channels[0] * self.cells**2)
        self.refinements = nn.ModuleList(
            PaperRefinement(f, m, out, s, skip_hidden) if refinement == "paper" else ReleasedRefinement(f, m, out, s)
            for f, m, out, s in zip(trunk.channels, mask_channels[:-1], mask_channels[1:], skip_channels, strict=True)
        )
        self.head = conv3x3(mask_channels[-1], 1)

    def refinement_modules(self) -> list[RefinementModule]:
        """The refinement modules, coarse first."""
        return [cast(RefinementModule, module) for module in self.refinements]

    def refinement_parameters(self) -> list[nn.Parameter]:
        """What the second training stage trains: M1's linear layer, all refinement modules, the head."""
        return [p for m in (self.encoding, self.refinements, self.head) for p in m.parameters()]

    def mask_encoding(self, code: Tensor) -> Tensor:
        """Codes (N, code) -> M1 (N, K0, s, s), linear."""
        return self.encoding(code).unflatten(1, (-1, self.cells, self.cells))

    def horizontals(self, taps: list[Tensor]) -> list[Tensor]:
        """The horizontal map of every stage, stride 16 first: once per image, shared by its windows."""
        return [module.horizontal(tap) for module, tap in zip(self.refinement_modules(), taps, strict=True)]

    def top_down(self, code: Tensor, horizontals: list[Tensor]) -> list[Tensor]:
        """All mask encodings M1 .. M5 of codes (N, code), given their windows' horizontal maps; differentiable."""
        encodings = [self.mask_encoding(code)]
        for module, horizontal in zip(self.refinement_modules(), horizontals, strict=True):
            encodings.append(module.add(horizontal, encodings[-1]))
        return encodings

    def refine_codes(self, code: Tensor, horizontals: list[list[Tensor]], windows: Windows) -> Tensor:
        """Logits (N, S, S) of the windows with codes (N, code), all at once; ``horizontals[scale][stage]``.

        For inference: no gradient.
        """
        modules = self.refinement_modules()
        return refine_windows(
            self.mask_encoding(code),
            horizontals,
            windows,
            [module.vertical() for module in modules],
            (self.head.weight, self.head.bias),
            upsample=modules[0].upsample,
            padding_mode=PADDING,
        )

    def refine_dense(self, taps: list[Tensor], code: Tensor, windows: Windows) -> Tensor:
        """Logits (N, S, S) of windows of one scale, cut out of dense horizontal maps; differentiable."""
        gathered = [
            gather_windows(horizontal, windows, self.cells << stage, step=1 << stage)
            for stage, horizontal in enumerate(self.horizontals(taps))
        ]
        return self.head(self.top_down(code, gathered)[-1])[:, 0]

    def refine_patch(self, taps: list[Tensor], code: Tensor) -> Tensor:
        """Logits (B, S, S) of patches, given their trunk maps (with context) and codes; differentiable."""
        if not self.crop_first:
            horizontals = [self.crop(h, stage) for stage, h in enumerate(self.horizontals(taps))]
            return self.head(self.top_down(code, horizontals)[-1])[:, 0]
        mask = self.mask_encoding(code)
        for stage, (module, tap) in enumerate(zip(self.refinement_modules(), taps, strict=True)):
            mask = module(self.crop(tap, stage), mask)
        return self.head(mask)[:, 0]

    def forward(self, patch: Tensor) -> Refined:  # type: ignore[override]
        """patch (B, 3, S + context, S + context) -> coarse and refined mask logits, score logits."""
        taps = self.taps(patch)
        code = self.patch_codes(taps)
        return Refined(self.coarse(code), self.refine_patch(taps, code), self.score(code))

"""SharpMask: DeepMask with a top-down refinement of its mask encoding (section 3)."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharpmask_kernels import Windows, gather_windows, refine_windows

from .deepmask import DeepMask
from .inference import Tap, made
from .refinement import PADDING, PaperRefinement, RefinementModule, ReleasedRefinement, conv3x3, padded_conv
from .trunk import Trunk

TILE = 4
"""Cells of stride 16 in a side of the tiles in which horizontal maps are computed; 64 pixels."""


class Refined(NamedTuple):
    """The outputs of a SharpMask for N windows: the logits of both masks and of the score."""

    coarse: Tensor
    """Coarse mask (N, side, side)."""
    refined: Tensor
    """Refined mask (N, S, S)."""
    score: Tensor
    """Objectness (N)."""


class SharpMask(DeepMask):
    """DeepMask with four refinement modules on top; the coarse mask's head stays.

    ``refinement``: "paper" or "released". ``mask_channels``: widths of the mask encodings M1 .. M5;
    ``skip_channels``: of the skips S1 .. S4. The default is the paper's k_m = k_s = k / 2^(i-1) with k = 32.
    ``crop_first``: whether the maps of a training patch are cropped to the window before the horizontal
    convolutions, as in the released code, or after them, which is what happens in full images. Raises
    ``ValueError`` for widths of another number of stages.
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
        """The parameters that the second training stage trains: M1's linear layer, all refinement modules, the head."""
        return [p for m in (self.encoding, self.refinements, self.head) for p in m.parameters()]

    def mask_encoding(self, code: Tensor) -> Tensor:
        """Codes (N, code) -> M1 (N, K0, s, s) by a linear layer."""
        return self.encoding(code).unflatten(1, (-1, self.cells, self.cells))

    def horizontals(self, taps: list[Tensor]) -> list[Tensor]:
        """The horizontal map of every stage, stride 16 first. The windows of an image share them."""
        return [module.horizontal(tap) for module, tap in zip(self.refinement_modules(), taps, strict=True)]

    def horizontals_at(self, taps: list[Tap], rows: Tensor, cols: Tensor, chosen: Tensor) -> list[Tensor]:
        """The horizontal maps of one image where some windows lie; elsewhere they may be 0. For inference only.

        rows, cols (N): the windows' cells at stride 16. chosen (N), bool: whether a window counts. Nothing waits for
        the device. ``taps`` is emptied, the largest map first, so that the memory is free for the others, and for one
        that is computed last.
        """
        coarsest = made(taps[0])
        height, width = coarsest.shape[2:]
        corners = coarsest.new_zeros(1, height, width, dtype=torch.float32)
        del coarsest
        places = torch.zeros_like(rows), rows.clamp(0, height - 1), cols.clamp(0, width - 1)
        corners.index_put_(places, chosen.float(), accumulate=True)
        before = self.cells - 1
        covered = F.max_pool2d(F.pad(corners, (before, 0, before, 0)), self.cells, stride=1)
        needed = F.max_pool2d(covered, TILE, ceil_mode=True) > 0
        given = dict(enumerate(taps))
        taps.clear()
        order = sorted(given, key=lambda stage: (callable(given[stage]), -stage))
        modules = self.refinement_modules()
        found = {stage: modules[stage].horizontal(made(given.pop(stage)), needed, TILE << stage) for stage in order}
        return [found[stage] for stage in sorted(found)]

    def top_down(self, code: Tensor, horizontals: list[Tensor]) -> list[Tensor]:
        """All mask encodings M1 .. M5 of N windows, from their codes (N, code) and horizontal maps; differentiable."""
        encodings = [self.mask_encoding(code)]
        for module, shared in zip(self.refinement_modules(), horizontals, strict=True):
            encodings.append(module.add(shared, encodings[-1]))
        return encodings

    def refine_codes(self, code: Tensor, horizontals: list[list[Tensor]], windows: Windows) -> Tensor:
        """Logits (N, S, S) of windows with codes (N, code), by one op; ``horizontals[scale][stage]``.

        For inference only: it has no gradient.
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

    def _logits(self, mask: Tensor) -> Tensor:
        """The last mask encoding (N, K, S, S) -> logits (N, S, S)."""
        if torch.compiler.is_compiling():
            return padded_conv(mask, self.head.weight, self.head.bias)[:, 0]
        return self.head(mask)[:, 0]

    def refine_dense(self, taps: list[Tensor], code: Tensor, windows: Windows) -> Tensor:
        """Logits (N, S, S) of windows of one scale, gathered from dense horizontal maps; differentiable."""
        gathered = [
            gather_windows(shared, windows, self.cells << stage, step=1 << stage)
            for stage, shared in enumerate(self.horizontals(taps))
        ]
        return self._logits(self.top_down(code, gathered)[-1])

    def refine_patch(self, taps: list[Tensor], code: Tensor) -> Tensor:
        """Logits (B, S, S) of patches, from their trunk maps (with context) and codes (B, code); differentiable."""
        if not self.crop_first:
            return self._logits(self.top_down(code, self._patch_horizontals(taps))[-1])
        mask = self.mask_encoding(code)
        for stage, (module, tap) in enumerate(zip(self.refinement_modules(), taps, strict=True)):
            mask = module(self.crop(tap, stage), mask)
        return self._logits(mask)

    def _patch_horizontals(self, taps: list[Tensor]) -> list[Tensor]:
        """The horizontal maps of patches' windows, computed nowhere else."""
        needed = torch.zeros_like(taps[0][:, :1], dtype=torch.bool)
        self.crop(needed, 0).fill_(True)
        return [
            self.crop(module.horizontal(tap, needed[:, 0], 1 << stage), stage)
            for stage, (module, tap) in enumerate(zip(self.refinement_modules(), taps, strict=True))
        ]

    def forward(self, patch: Tensor) -> Refined:  # type: ignore[override]
        """patch (B, 3, S + context, S + context) -> coarse and refined mask logits, score logits."""
        self.check_patch(patch)
        taps = self.taps(patch)
        code = self.patch_codes(taps)
        return Refined(self.coarse(code), self.refine_patch(taps, code), self.score(code))

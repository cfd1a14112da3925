"""The two graphs of an exported model: the bottom-up pass over a picture, and the masks of some of its windows.

Both are plain PyTorch operations, for pictures of any size and any number of windows, in the form for inference.
"""

from __future__ import annotations

from typing import TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharpmask_kernels import Windows, gather_windows

from ..geometry import GREY
from ..models import DeepMask, SharpMask
from ..search.placement import PLACEMENTS

Inputs: TypeAlias = tuple[Tensor, ...]


class BottomUp(nn.Module):
    """A picture at one scale to what its windows share.

    picture (1, 3, h, w), RGB in [0, 1] -> codes (1, C, rows, cols), score (1, 1, rows', cols') and the horizontal maps
    of the refinement modules, stride 16 first. Score logit [0, 0, r, c] belongs to the window whose first pixel is at
    (16 r - S / 2, 16 c - S / 2). What is beyond the picture is grey. Without refinement there are no horizontal maps.
    """

    inputs = ("picture",)

    def __init__(self, model: DeepMask) -> None:
        super().__init__()
        self.model = model  # whose parameters the graph may hold
        self.form = model.for_export()

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:
        taps = self.form.trunk.taps(self._framed(picture))
        codes, score = self.form.heads(taps)
        horizontals = self.model.horizontals(taps) if isinstance(self.model, SharpMask) else []
        return codes, score, *horizontals

    def _framed(self, picture: Tensor) -> Tensor:
        """As the form's own, which writes into memory of fixed sizes."""
        framed = F.pad(picture, (self.form.pad,) * 4, value=GREY)
        before, after = self.form.trunk.border
        if not before and not after:
            return framed
        value = self.form.trunk.value
        return F.pad(framed - value, (before, after, before, after)) + value

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs' names, in their order."""
        return "codes", "score", *horizontal_names(self.model)

    def example(self) -> Inputs:
        """Inputs of a size that no graph is bound to."""
        return (torch.full((1, 3, self.model.window + 1, self.model.window + 7), GREY),)


class WindowMasks(nn.Module):
    """The masks of N windows of one scale, from what :class:`BottomUp` gives for it.

    codes, row (N), col (N), int64, and the horizontal maps -> mask logits (N, S, S).
    """

    outputs = ("logits",)

    def __init__(self, model: DeepMask) -> None:
        super().__init__()
        self.model = model
        self.heads = model.for_export().heads

    def forward(self, codes: Tensor, row: Tensor, col: Tensor, *horizontals: Tensor) -> Tensor:
        zero = torch.zeros_like(row)
        windows = Windows(zero.float(), zero, zero, row, col)
        code = self.heads.codes([codes], windows)
        model = self.model
        if not isinstance(model, SharpMask):
            return PLACEMENTS[model.search.geometry](model.window).enlarge(model.coarse(code))
        gathered = [
            gather_windows(shared, windows, model.cells << stage, step=1 << stage)
            for stage, shared in enumerate(horizontals)
        ]
        return cast(Tensor, model.head(model.top_down(code, gathered)[-1]))[:, 0]

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs' names, in their order."""
        return "codes", "row", "col", *horizontal_names(self.model)

    def example(self) -> Inputs:
        """Inputs of sizes that no graph is bound to."""
        bottom_up = BottomUp(self.model)
        with torch.no_grad():
            codes, _, *horizontals = bottom_up(*bottom_up.example())
        cells = torch.tensor([0, 0, 0]), torch.tensor([0, 0, 0])
        return codes, *cells, *horizontals


def horizontal_names(model: DeepMask) -> tuple[str, ...]:
    """Of the horizontal maps, by their stride in pixels."""
    stages = len(model.refinement_modules()) if isinstance(model, SharpMask) else 0
    return tuple(f"horizontal_{16 >> stage}" for stage in range(stages))

"""The heads: from a window's code to a coarse mask and to a score."""

from __future__ import annotations

from torch import Tensor, nn


class MaskHead(nn.Linear):
    """Code (N, code) -> coarse mask logits (N, side, side)."""

    def __init__(self, code: int, side: int) -> None:
        super().__init__(code, side * side)
        self.side = side

    def forward(self, code: Tensor) -> Tensor:
        return super().forward(code).unflatten(1, (self.side, self.side))


class ScoreHead(nn.Sequential):
    """Code (..., code) -> objectness logit (...): "head C" of SharpMask, section 4.

    The mask has the same code.
    """

    def __init__(self, code: int, hidden: int) -> None:
        super().__init__(
            nn.Dropout(0.5),
            nn.Linear(code, hidden),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(hidden, 1),
            nn.Flatten(-2),
        )

"""``topk_windows``: the best windows of all scales (section 3.3), by PyTorch's own operations on every device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..backends.reference import topk_windows as reference
from ..windows import Windows
from . import calling
from .library import define


def topk_windows(scores: Sequence[Tensor], n: int) -> Windows:
    """The ``n`` best windows of every image, over all scales.

    scores: one (B, 1, h, w) map per scale. Gives exactly B * min(n, cells) windows, images one after
    another, best first, equal scores in the order scale, row, column. NaN ranks as -inf; such rows carry the
    score -inf and are the caller's to drop. Nothing waits for the device.
    """
    scores = checks.listed("scores", scores)
    checks.pyramid("scores", scores)
    if scores[0].shape[1] != 1:
        raise checks.refusal("scores", "of one channel", scores[0].shape[1])
    n = checks.integer("n", n, 0)
    scores = [s.detach() for s in scores]
    return Windows(*(reference.topk_windows if calling.exporting() else _TOPK_WINDOWS)(scores, n))


def _fake(a: Any) -> tuple[Tensor, ...]:
    cells = sum(s.shape[2] * s.shape[3] for s in a.scores)
    count = a.scores[0].shape[0] * torch.sym_min(a.n, cells)
    score = a.scores[0].new_empty(count, dtype=torch.float32)
    return score, *(torch.empty_like(score, dtype=torch.int64) for _ in range(4))


_TOPK_WINDOWS = define(reference.topk_windows, _fake, run=reference.topk_windows, backends=False)

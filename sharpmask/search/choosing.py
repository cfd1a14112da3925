"""Which windows are worth refining.

The best window of an object has neighbours that score almost as well and give almost the same mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sharpmask_kernels import Windows, topk_windows


def best_windows(scores: Sequence[Tensor], count: int, *, priors: Sequence[float], spread: float = 0.0) -> Windows:
    """The ``count`` best windows over all scales, fewer if there are fewer, best first.

    scores: score logits, a (1, 1, rows, cols) a scale; windows have these as their ``score``, NaN as -inf.
    A window counts its probability times the scale's prior, times exp(-``spread``) for each of the eight windows around
    it that scores higher. It counts the same whatever other scales there are.
    """
    if spread == 0 and all(prior == 1 for prior in priors):
        return topk_windows(scores, count)
    worth = [
        F.logsigmoid(score) - spread * better_neighbours(score) + math.log(prior)
        for score, prior in zip(scores, priors, strict=True)
    ]
    windows = topk_windows(worth, count)
    return windows._replace(score=scores_of(scores, windows))


def better_neighbours(score: Tensor) -> Tensor:
    """How many of the windows around each one, eight or less, score higher: of and as (1, 1, rows, cols)."""
    around = F.pad(score, (1, 1, 1, 1), value=-torch.inf).unfold(2, 3, 1).unfold(3, 3, 1)
    return (around > score[..., None, None]).sum((4, 5))


def scores_of(scores: Sequence[Tensor], windows: Windows) -> Tensor:
    """The scores (N) of windows in maps (1, 1, rows, cols), NaN as -inf. Nothing waits for the device."""
    found = torch.full_like(windows.score, -torch.inf)
    for scale, score in enumerate(scores):
        rows, cols = score.shape[2:]
        there = score[0, 0, windows.row.clamp(max=rows - 1), windows.col.clamp(max=cols - 1)]
        found = torch.where((windows.scale == scale) & ~there.isnan(), there, found)
    return found

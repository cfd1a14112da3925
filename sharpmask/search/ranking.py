"""A learned ranking: from the score of a window and statistics of its mask to the share of an object's recall.

A logistic regression, whose weights are among a checkpoint's search settings. It sees the refined mask, which the score
of the window does not: the score is computed before the masks of the best windows are.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sharpmask_kernels.windows import logit

STEP = 3
"""Of a mask's pixels, one in so many on each axis is looked at."""


class Looks(NamedTuple):
    """What is known of N windows beside their masks; tensors (N)."""

    score: Tensor
    """Score logits."""
    stability: Tensor
    """See :func:`sharpmask.search.looking.stability`."""
    octave: Tensor
    """Binary logarithm of the scale over the search's smallest."""
    outside: Tensor
    """Share of the window outside of the photo, in [0, 1]."""


def statistics(logits: Tensor, looks: Looks, threshold: float) -> Tensor:
    """What a ranking is learned from, (N, 13) by ``RANKED_BY``, of mask logits (N, S, S) and the masks' probability."""
    limit = logit(threshold)
    # In parts that stay in cache.
    parts = [_of_masks(part[:, ::STEP, ::STEP].float().nan_to_num(-100.0), limit) for part in logits.split(32)]
    known = torch.stack([x.float() for x in looks], 1)
    return torch.cat([known, torch.cat(parts)], 1)


def ranked(values: Tensor, weights: tuple[float, ...]) -> Tensor:
    """The learned scores (N) in [0, 1] of :func:`statistics`."""
    bias, *others = values.new_tensor(weights)
    return (values @ torch.stack(others) + bias).sigmoid()


def _of_masks(x: Tensor, limit: float) -> Tensor:
    """The statistics of masks alone, (N, 9), of logits (N, s, s)."""
    mask, side = x > limit, x.shape[1]
    inside, probability = mask.float(), x.sigmoid()
    count = inside.sum((1, 2))
    some, share = count.clamp(min=1), count / side**2
    rows, cols = inside.sum(2), inside.sum(1)
    edges = (mask[:, 1:] != mask[:, :-1]).sum((1, 2)) + (mask[:, :, 1:] != mask[:, :, :-1]).sum((1, 2))
    place = torch.linspace(-0.5, 0.5, side, device=x.device)
    border = rows[:, 0] + rows[:, -1] + cols[:, 0] + cols[:, -1]
    third = slice(side // 3, side - side // 3)
    columns = [
        share,
        (probability * inside).sum((1, 2)) / some,
        (probability * (1 - probability)).mean((1, 2)) / share.clamp(min=1e-3).sqrt(),
        edges / some.sqrt(),
        border / (4 * side),
        torch.hypot((rows * place).sum(1) / some, (cols * place).sum(1) / some),
        (rows > 0).sum(1) / side,
        (cols > 0).sum(1) / side,
        inside[:, third, third].mean((1, 2)),
    ]
    return torch.stack(columns, 1)

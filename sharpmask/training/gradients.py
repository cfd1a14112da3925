"""Losses and gradients of a step whose examples are in several batches, and in several processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..models import DeepMask
from .losses import Losses, autocast, examples, total_loss
from .processes import sum_counts, sum_gradients
from .stages import TERMS, TrainConfig


def set_gradients(
    model: DeepMask, losses: Losses, batches: Sequence[Any], seeds: Sequence[int], config: TrainConfig
) -> dict[str, Tensor]:
    """Add to the parameters' gradients those of a step, and return its losses by term, on the model's device.

    Both are means over the examples of all batches of all processes, as those of one large batch. Terms without
    examples are left out. ``seeds`` are those of each batch's dropout. Nothing waits for a GPU.
    """
    terms = TERMS[config.stage]
    learning = [p for p in model.parameters() if p.requires_grad]
    device = learning[0].device
    counts = [examples(batch) for batch in batches]
    totals = dict(zip(terms, sum_counts(sum(count[term] for count in counts) for term in terms), strict=True))
    sums = dict.fromkeys(terms, torch.zeros((), device=device))
    for batch, seed, count in zip(batches, seeds, counts, strict=True):
        torch.manual_seed(seed)
        with autocast(config.precision, device):
            found = losses(model, batch, config)
        shares = {term: loss * (count[term] / totals[term]) for term, loss in found.items()}
        if shares:
            total_loss(shares, config).backward()
        sums |= {term: sums[term] + share.detach() for term, share in shares.items()}
    summed = sum_gradients(learning, torch.stack([sums[term].float() for term in terms]))
    return {term: summed[place] for place, term in enumerate(terms) if totals[term]}

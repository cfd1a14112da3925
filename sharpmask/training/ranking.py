"""Fitting the learned ranking of :mod:`sharpmask.search.ranking` to annotated photos."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch import Tensor

from ..data.coco import CocoFolder, Photo
from ..errors import DataError, counted
from ..search import ProposalGenerator
from ..search.proposals import Rle

FEWEST_PHOTOS = 20
FEWEST_MASKS = 1000
"""Fewer tell too little of 14 weights."""
DECAY = 1e-5
"""Weight decay of the regression, of statistics with a deviation of 1."""


def rankable(folder: CocoFolder) -> list[Photo]:
    """The photos that a ranking can be fitted to. Raises ``DataError`` for fewer than ``FEWEST_PHOTOS``.

    Photos with objects without an annotation are none: their masks would count as wrong.
    """
    found = [photo for photo in folder.photos if photo.complete and any(not i.crowd for i in photo.instances)]
    if len(found) < FEWEST_PHOTOS:
        raise DataError(
            f"{folder.annotation_file}: must hold {FEWEST_PHOTOS} completely annotated photos with objects to fit a "
            f"ranking, got {len(found)} among {counted(len(folder.photos), 'photo')}"
        )
    return found


def fit_ranking(generator: ProposalGenerator, folder: CocoFolder, photos: Iterable[Photo]) -> tuple[float, ...]:
    """Weights for ``SearchConfig.ranking``: those that tell best how much recall the masks of ``photos`` bring.

    The target is clamp(2 IoU - 1, 0, 1), to which a mask's average recall over IoU .5:.05:.95 is proportional. Masks in
    crowds are left out. Raises ``DataError`` for fewer than ``FEWEST_MASKS``.
    """
    values, targets = [], []
    for photo in photos:
        statistics, rles = generator.judge(folder.load(photo))
        target = _targets(photo, rles)
        known = np.isfinite(target)
        values.append(statistics.double().cpu()[torch.from_numpy(known)])
        targets.append(torch.from_numpy(target[known]))
    masks = sum(map(len, targets))
    if masks < FEWEST_MASKS:
        raise DataError(
            f"{folder.annotation_file}: must have photos with {FEWEST_MASKS} masks to fit a ranking, got {masks}; "
            "give more photos"
        )
    return logistic(torch.cat(values), torch.cat(targets))


def logistic(values: Tensor, targets: Tensor) -> tuple[float, ...]:
    """Bias and weights of the logistic regression of ``targets`` (N), in [0, 1], on ``values`` (N, K); fp64."""
    mean, deviation = values.mean(0), values.std(0).clamp(min=1e-6)
    scaled = (values - mean) / deviation
    weights = torch.zeros(values.shape[1] + 1, dtype=values.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.binary_cross_entropy_with_logits(scaled @ weights[1:] + weights[0], targets)
        value = value + DECAY * weights[1:].square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    slopes = weights.detach()[1:] / deviation
    bias = weights.detach()[0] - (slopes * mean).sum()
    return (float(bias), *slopes.tolist())


def _targets(photo: Photo, rles: list[Rle]) -> npt.NDArray[np.float64]:
    """What each mask deserves, (N); NaN for one in a crowd that fits no object."""
    if not rles:
        return np.zeros(0)
    drawn = [coco_mask.encode(np.asfortranarray(i.mask().astype(np.uint8))) for i in photo.instances]
    crowd = np.array([i.crowd for i in photo.instances])
    overlap = np.asarray(coco_mask.iou(rles, drawn, crowd.astype(np.uint8).tolist()))
    best = overlap[:, ~crowd].max(1)
    crowded = (overlap[:, crowd] > 0.5).any(1) & (best <= 0.5)
    return np.where(crowded, np.nan, (2 * best - 1).clip(0, 1))

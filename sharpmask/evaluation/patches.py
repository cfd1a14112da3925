"""Metrics of single patches: IoU of masks and accuracy of scores."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class MaskMetrics:
    """IoU statistics over patches, fractions in [0, 1]; NaN for no patches."""

    patches: int
    mean: float
    median: float
    share_50: float
    """Share of patches with IoU >= .5."""
    share_70: float
    """Share of patches with IoU >= .7."""


def resize_masks(logits: Tensor, target: Tensor) -> Tensor:
    """Mask logits (N, h, w) at the size of ``target`` (N, H, W), bilinear."""
    if logits.shape == target.shape:
        return logits
    return F.interpolate(logits[:, None], target.shape[1:], mode="bilinear", align_corners=False)[:, 0]


def mask_iou(logits: Tensor, targets: Tensor, threshold: float = 0.0) -> Tensor:
    """IoU of each patch, (N,) float64. Foreground is logits >= threshold and targets > 0.

    logits: (N, H, W) floating; targets: (N, H, W) bool, 0/1 or -1/+1. The IoU of two empty masks is 1.
    Raises ValueError when the shapes differ.
    """
    if logits.ndim != 3 or logits.shape != targets.shape:
        raise ValueError(
            f"logits and targets must be of the same shape (N, H, W), got {logits.shape} and {targets.shape}"
        )
    predicted, wanted = (logits.detach() >= threshold).flatten(1), (targets > 0).flatten(1)
    overlap = (predicted & wanted).sum(1).double()
    union = (predicted | wanted).sum(1).double()
    return torch.where(union > 0, overlap / union.clamp(min=1), 1.0)


def mask_metrics(logits: Tensor, targets: Tensor, threshold: float = 0.0) -> MaskMetrics:
    """IoU statistics over one batch; arguments as for `mask_iou`."""
    return _summary(mask_iou(logits, targets, threshold))


def score_accuracy(scores: Tensor, labels: Tensor) -> float:
    """Share of score logits whose sign agrees with the label: >= 0 means object, and so does a label > 0.

    Scores and labels have the same shape, whatever it is. NaN for no scores. Raises ValueError when the shapes
    differ.
    """
    return float(_agreed(scores, labels).double().mean())


def _agreed(scores: Tensor, labels: Tensor) -> Tensor:
    if scores.shape != labels.shape:
        raise ValueError(f"scores and labels must be of the same shape, got {scores.shape} and {labels.shape}")
    return (scores >= 0) == (labels > 0)


class PatchMetrics:
    """Collects patch metrics over batches: `add_masks` and `add_scores` for each batch, then `compute`.

    Only the results are read from the batches' device, which must be the same for all.
    """

    def __init__(self) -> None:
        self._ious: list[Tensor] = []
        self._agreed: list[Tensor] = []

    def add_masks(self, logits: Tensor, targets: Tensor) -> None:
        """Adds a batch of masks; arguments as for `mask_iou`."""
        self._ious.append(mask_iou(logits, targets))

    def add_scores(self, scores: Tensor, labels: Tensor) -> None:
        """Adds a batch of score logits; arguments as for `score_accuracy`."""
        self._agreed.append(_agreed(scores, labels).flatten())

    def masks(self) -> MaskMetrics:
        """IoU statistics over all masks added so far."""
        return _summary(torch.cat(self._ious) if self._ious else torch.empty(0))

    def compute(self) -> dict[str, float]:
        """Metrics by name: iou_mean, iou_median, share_50, share_70, score_accuracy; NaN where nothing was added."""
        masks = self.masks()
        return {
            "iou_mean": masks.mean,
            "iou_median": masks.median,
            "share_50": masks.share_50,
            "share_70": masks.share_70,
            "score_accuracy": float(torch.cat(self._agreed).double().mean()) if self._agreed else math.nan,
        }


def _summary(ious: Tensor) -> MaskMetrics:
    values = ious.cpu().numpy()
    if not len(values):
        return MaskMetrics(0, math.nan, math.nan, math.nan, math.nan)
    shares = [float(np.mean(values >= bound)) for bound in (0.5, 0.7)]
    return MaskMetrics(len(values), float(values.mean()), float(np.median(values)), *shares)

"""Metrics of single patches, by hand and in batches."""

from __future__ import annotations

import math

import pytest
import torch

from sharpmask.evaluation import PatchMetrics, mask_iou, mask_metrics, score_accuracy


def test_patch_metrics_by_hand() -> None:
    logits = torch.full((4, 2, 2), -1.0)
    targets = torch.zeros(4, 2, 2)
    logits[0, 0] = 0.0  # a logit of exactly 0 is foreground
    targets[0, 0] = 1  # IoU 1
    logits[1], targets[1, 0] = 1.0, 1  # IoU 1/2
    logits[2, 0, 0], targets[2, 1] = 1.0, 1  # IoU 0; patch 3: both empty, IoU 1
    assert mask_iou(logits, targets).tolist() == [1, 0.5, 0, 1]
    metrics = mask_metrics(logits, 2 * targets - 1)  # -1/+1 targets mean the same
    assert (metrics.patches, metrics.mean, metrics.median) == (4, 0.625, 0.75)
    assert (metrics.share_50, metrics.share_70) == (0.75, 0.5)
    assert mask_metrics(logits[:1], targets[:1], threshold=0.5).mean == 0
    assert score_accuracy(torch.tensor([2.0, -1.0, 0.5, 0.0]), torch.tensor([1, -1, -1, 1])) == 0.75


def test_patch_metrics_accumulate_to_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(10, 6, 6, generator=generator)
    targets = (logits + torch.randn(10, 6, 6, generator=generator)) > 0
    scores, labels = torch.randn(10, generator=generator), torch.randn(10, generator=generator) > 0
    metrics = PatchMetrics()
    for part in (slice(0, 3), slice(3, 3), slice(3, 10)):
        metrics.add_masks(logits[part], targets[part])
        metrics.add_scores(scores[part], labels[part])
    whole = mask_metrics(logits, targets)
    assert metrics.masks() == whole
    assert metrics.compute()["iou_mean"] == whole.mean
    assert metrics.compute()["score_accuracy"] == pytest.approx(score_accuracy(scores, labels))
    assert all(math.isnan(value) for value in PatchMetrics().compute().values())
    with pytest.raises(ValueError, match="logits"):
        metrics.add_masks(logits, targets[:, :3])

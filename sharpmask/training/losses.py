"""The losses of a batch of patches or tiles, by term: coarse mask, refined mask and score."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.tiles import TileBatch
from ..evaluation import mask_iou, resize_masks
from ..models import DeepMask
from .stages import TERMS, TrainConfig


def mask_loss(logits: Tensor, target: Tensor, dice: float) -> Tensor:
    """Mean over pixels of log(1 + exp(-y f)), y = +-1 (DeepMask, eq. 1), plus ``dice`` times the dice loss.

    logits (N, h, w) are resized to the target's (N, H, W) in {0, 1} first.
    """
    logits = resize_masks(logits, target)
    loss = F.binary_cross_entropy_with_logits(logits, target)
    if dice:
        probability = logits.sigmoid().flatten(1)
        truth = target.flatten(1)
        overlap = 2 * (probability * truth).sum(1) + 1
        loss = loss + dice * (1 - overlap / (probability.sum(1) + truth.sum(1) + 1)).mean()
    return loss


def patch_losses(model: DeepMask, batch: dict[str, Any], config: TrainConfig) -> dict[str, Tensor]:
    """Losses by term of one batch of patches, which is about masks or about scores."""
    wanted = TERMS[config.stage]
    taps = model.taps(batch["image"])
    if batch["kind"] == "score":
        score = model.score_patch(taps)
        return {"score": F.binary_cross_entropy_with_logits(score, (batch["target"] > 0).float())}
    code = model.patch_codes(taps)
    target = (batch["target"] > 0).float()
    losses = {}
    if "coarse" in wanted:
        losses["coarse"] = mask_loss(model.coarse(code), target, config.dice)
    if "refined" in wanted:
        losses["refined"] = mask_loss(model.refine_patch(taps, code), target, config.dice)  # type: ignore[operator]
    return losses


def tile_losses(model: DeepMask, batch: TileBatch, config: TrainConfig) -> dict[str, Tensor]:
    """Losses by term of one batch of tiles with labelled windows."""
    wanted = TERMS[config.stage]
    image = batch.image.float() / 255
    taps = model.taps(image.contiguous(memory_format=torch.channels_last))
    code = model.window_codes(taps, batch.windows)
    positives = len(batch.masks)
    target = batch.masks.float()
    losses: dict[str, Tensor] = {}
    best = None
    if positives and "coarse" in wanted:
        best = model.coarse(code[:positives])
        losses["coarse"] = mask_loss(best, target, config.dice)
    if positives and "refined" in wanted:
        windows = batch.windows.select(slice(positives))
        best = model.refine_dense(taps, code[:positives], windows)  # type: ignore[operator]
        losses["refined"] = mask_loss(best, target, config.dice)
    if "score" in wanted and len(code):
        truth = torch.zeros(len(code), device=code.device)
        truth[:positives] = 1
        if config.soft_scores and best is not None:
            truth[:positives] = quality(best.detach(), target)
        losses["score"] = F.binary_cross_entropy_with_logits(model.score(code), truth)
    return losses


def quality(logits: Tensor, target: Tensor) -> Tensor:
    """How good each mask (N, h, w) is, as a score to predict: clamp(1.1 IoU, .3, 1)."""
    return (1.1 * mask_iou(resize_masks(logits, target), target)).clamp(0.3, 1).to(target)


def total_loss(losses: dict[str, Tensor], config: TrainConfig) -> Tensor:
    """The weighted sum that is minimised."""
    weighted = [config.score_weight * v if k == "score" else v for k, v in losses.items()]
    return config.loss_scale * torch.stack(weighted).sum()

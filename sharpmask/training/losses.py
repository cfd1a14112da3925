"""Losses of a batch of patches or tiles by term: coarse mask, refined mask and score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sharpmask_kernels.windows import logit

from ..data.tiles import TileBatch
from ..evaluation import mask_iou, resize_masks
from ..models import DeepMask
from .stages import TERMS, ScoreTarget, TrainConfig, TrainPrecision

Losses = Callable[[DeepMask, Any, TrainConfig], dict[str, Tensor]]
"""Of a model and a batch, by term."""


def loss_function(config: TrainConfig) -> Losses:
    """The losses of the batches that ``config`` asks for, compiled if it says so."""
    losses: Losses = tile_losses if config.sampling == "dense" else patch_losses
    return torch.compile(losses) if config.compile else losses


def autocast(precision: TrainPrecision, device: torch.device) -> torch.autocast:
    """The context in which the losses are computed. Losses themselves are of fp32 logits."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def mask_loss(logits: Tensor, target: Tensor, dice: float) -> Tensor:
    """Mean over pixels of log(1 + exp(-y f)) with y = +-1 (DeepMask, eq. 1), plus ``dice`` times the dice loss.

    ``target``, (N, H, W), is 0 or 1. The logits f, (N, h, w), are resized to (H, W) first. Returns a scalar.
    """
    logits = resize_masks(logits.float(), target)
    loss = F.binary_cross_entropy_with_logits(logits, target)
    if dice:
        probability = logits.sigmoid().flatten(1)
        truth = target.flatten(1)
        overlap = 2 * (probability * truth).sum(1) + 1
        loss = loss + dice * (1 - overlap / (probability.sum(1) + truth.sum(1) + 1)).mean()
    return loss


def patch_losses(model: DeepMask, batch: dict[str, Any], config: TrainConfig) -> dict[str, Tensor]:
    """Losses by term of a batch of patches. A batch trains either masks or scores, as its "kind" says."""
    wanted = TERMS[config.stage]
    taps = model.taps(batch["image"])
    if batch["kind"] == "score":
        truth = (batch["target"] > 0).float()
        if config.score_target != "hard":
            truth *= _patch_qualities(model, taps, batch["masks"], config)
        return {"score": F.binary_cross_entropy_with_logits(model.score_patch(taps).float(), truth)}
    code = model.patch_codes(taps)
    target = (batch["target"] > 0).float()
    losses = {}
    if "coarse" in wanted:
        losses["coarse"] = mask_loss(model.coarse(code), target, config.dice)
    if "refined" in wanted:
        losses["refined"] = mask_loss(model.refine_patch(taps, code), target, config.dice)  # type: ignore[operator]
    return losses


@torch.no_grad()
def _patch_qualities(model: DeepMask, taps: list[Tensor], masks: Tensor, config: TrainConfig) -> Tensor:
    """The score targets (B,) of patches as if all were positives, so that nothing waits to know which are."""
    code = model.patch_codes(taps)
    refined = "refined" in TERMS[config.stage]
    logits = model.refine_patch(taps, code) if refined else model.coarse(code)  # type: ignore[operator]
    return quality(logits, masks, config.score_target, model.search.threshold)


def tile_losses(model: DeepMask, batch: TileBatch, config: TrainConfig) -> dict[str, Tensor]:
    """Losses by term of a batch of tiles. Terms without windows to learn from are left out."""
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
        if config.score_target != "hard" and best is not None:
            truth[:positives] = quality(best.detach(), target, config.score_target, model.search.threshold)
        losses["score"] = F.binary_cross_entropy_with_logits(model.score(code).float(), truth)
    return losses


def examples(batch: Any) -> dict[str, int]:
    """How many examples a batch has for each term. The term's loss is the mean over them."""
    if isinstance(batch, TileBatch):
        masks, scores = len(batch.masks), len(batch.windows.row)
    else:
        count = len(batch["image"])
        masks, scores = (0, count) if batch["kind"] == "score" else (count, 0)
    return {"coarse": masks, "refined": masks, "score": scores}


def quality(logits: Tensor, target: Tensor, kind: ScoreTarget, threshold: float) -> Tensor:
    """The score that each predicted mask deserves, (N,), of logits (N, h, w) and target (N, H, W).

    It is the mask's IoU, or for the ``kind`` "soft" clamp(1.1 IoU, .3, 1). The mask is what the search will take it
    for: the pixels of a probability above ``threshold``.
    """
    overlap = mask_iou(resize_masks(logits.float(), target), target, logit(threshold))
    return (overlap if kind == "quality" else (1.1 * overlap).clamp(0.3, 1)).to(target)


def total_loss(losses: dict[str, Tensor], config: TrainConfig) -> Tensor:
    """The weighted sum of the losses, which training minimises."""
    weighted = [config.score_weight * v if k == "score" else v for k, v in losses.items()]
    return config.loss_scale * torch.stack(weighted).sum()

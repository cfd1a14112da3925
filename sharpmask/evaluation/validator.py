"""Patch metrics of a model on samples of a folder."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..data.coco import CocoFolder
from ..data.mixture import Mixture
from ..data.sampling import PatchSampler
from ..devices import to_device
from ..models import DeepMask, ModelConfig, SharpMask
from .patches import PatchMetrics, resize_masks


class Validator:
    """Patch metrics of a model's masks and scores on fixed samples of a folder (DeepMask, section 5).

    Without a completely annotated photo, nothing is known to be a negative, and scores are not measured.
    """

    def __init__(self, data: CocoFolder | Mixture, config: ModelConfig, *, samples: int, batch_size: int = 32) -> None:
        shape: dict[str, Any] = {"window": config.window, "context": config.context, "seed": 2}
        self.masks = PatchSampler(data, head="mask", mask_size=config.window, **shape)
        complete = any(photo.complete for part in Mixture.of(data).folders for photo in part.photos)
        self.scores = PatchSampler(data, head="score", **shape) if complete else None
        self.chunks = [range(samples)[i : i + batch_size] for i in range(0, samples, batch_size)]

    @torch.no_grad()
    def __call__(self, model: DeepMask) -> dict[str, float]:
        """Metrics by name. Of the coarse and of the refined masks at probability .5: mean and median IoU and the
        shares of IoU >= .5 and >= .7. Of the scores: the accuracy of their sign."""
        device = model.mean.device
        coarse, refined, score = PatchMetrics(), PatchMetrics(), PatchMetrics()
        for chunk in self.chunks:
            batch = to_device(self.masks.batch(chunk), device)
            taps = model.taps(batch["image"])
            code = model.patch_codes(taps)
            target = batch["target"]
            coarse.add_masks(resize_masks(model.coarse(code), target), target)
            if isinstance(model, SharpMask):
                refined.add_masks(model.refine_patch(taps, code), target)
            if self.scores is None:
                continue
            batch = to_device(self.scores.batch(chunk), device)
            score.add_scores(model.score_patch(model.taps(batch["image"])), batch["target"])
        named = {"coarse_": coarse, "refined_": refined, "": score}
        metrics = {f"{name}{k}": v for name, m in named.items() for k, v in m.compute().items()}
        return {k: v for k, v in metrics.items() if not math.isnan(v)}

"""For orientation: Segment Anything's automatic masks of a photo, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def finder(photo: Any, side: int) -> Callable[[], object]:
    """Finds masks with ViT-B from a grid of ``side`` x ``side`` points. No mask is dropped for its quality."""
    try:
        from segment_anything import SamAutomaticMaskGenerator, sam_model_registry
    except ImportError:
        raise RuntimeError("not installed: pip install segment-anything") from None
    torch.manual_seed(0)
    network = sam_model_registry["vit_b"]().eval()
    masks = SamAutomaticMaskGenerator(
        network, points_per_side=side, pred_iou_thresh=0.0, stability_score_thresh=0.0, output_mode="coco_rle"
    )
    return lambda: masks.generate(photo)

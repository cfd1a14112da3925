"""Object proposals of a photo: masks, boxes, scores, and what people do with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from .visualize import overlay, save_png

Rle = dict[str, Any]


@dataclass(frozen=True)
class Proposals:
    """N object proposals of one image of (h, w) pixels, best first."""

    image: npt.NDArray[np.uint8]
    """The photo, uint8 (h, w, 3) RGB."""
    rles: list[Rle]
    """Masks as COCO RLE, ``counts`` as bytes."""
    scores: npt.NDArray[np.float32]
    """Objectness in [0, 1], (N)."""
    timing: dict[str, float] = field(default_factory=dict)
    """Seconds spent in each stage of making them, in order."""

    def __len__(self) -> int:
        return len(self.rles)

    @property
    def boxes(self) -> npt.NDArray[np.float64]:
        """Tight boxes of the masks: (N, 4), x, y, width, height in pixels."""
        return np.asarray(coco_mask.toBbox(self.rles)) if self.rles else np.zeros((0, 4))

    def masks(self) -> npt.NDArray[np.bool_]:
        """All masks at once: bool (N, h, w). For very many on large images see :meth:`iter_masks`."""
        masks = np.zeros((len(self), *self.image.shape[:2]), dtype=bool)
        for out, mask in zip(masks, self.iter_masks(), strict=True):
            out[:] = mask
        return masks

    def iter_masks(self) -> Iterator[npt.NDArray[np.bool_]]:
        """The masks one after another: bool (h, w) each."""
        return (coco_mask.decode(rle).astype(bool) for rle in self.rles)

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """COCO results of this image, ready for ``json.dump``; class-agnostic, so all of category 1."""
        return [
            {
                "image_id": image_id,
                "category_id": 1,
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
                "bbox": [float(v) for v in box],
                "score": float(score),
            }
            for rle, box, score in zip(self.rles, self.boxes, self.scores, strict=True)
        ]

    def save_overlay(self, path: str | Path, limit: int = 20) -> None:
        """Write a PNG of the photo with the best ``limit`` masks in distinct colours."""
        save_png(overlay(self.image, self.rles, self.scores.tolist(), limit=limit), Path(path))


def suppress(rles: list[Rle], mask_nms: float | None, box_nms: float | None) -> list[int]:
    """Greedy non-maximum suppression of masks sorted best first: the positions that stay.

    A mask goes if its IoU with one that stays exceeds ``mask_nms``, or their boxes' IoU ``box_nms``.
    """
    overlaps = np.zeros((len(rles), len(rles)), dtype=bool)
    for limit, shapes in ((mask_nms, rles), (box_nms, coco_mask.toBbox(rles) if rles else [])):
        if limit is not None and rles:
            overlaps |= np.asarray(coco_mask.iou(shapes, shapes, [0] * len(rles))) > limit
    stay = np.ones(len(rles), dtype=bool)
    for i in range(len(rles)):
        if stay[i]:
            stay[i + 1 :] &= ~overlaps[i, i + 1 :]
    return [int(i) for i in np.flatnonzero(stay)]

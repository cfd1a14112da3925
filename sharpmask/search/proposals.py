"""Object proposals of one photo: masks, boxes and scores; non-maximum suppression."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from ..data.images import reduced
from ..data.orientation import Exif
from ..visualize import format_of, overlay, save_picture
from .pictures import PhotoFile

Rle = dict[str, Any]
"""A mask as COCO RLE: ``size`` [h, w] and ``counts``, compressed, as bytes."""


@dataclass(frozen=True)
class Proposals:
    """N object proposals of one image of (h, w) pixels, best first."""

    photo: npt.NDArray[np.uint8] | PhotoFile
    """The photo: uint8 (h, w, 3) RGB, or the file of a large one, of which fewer pixels were searched."""
    rles: list[Rle]
    """Masks as COCO RLE, ``counts`` as bytes."""
    scores: npt.NDArray[np.float32]
    """Objectness in [0, 1], (N)."""
    timing: dict[str, float] = field(default_factory=dict)
    """Seconds that each stage took, in order."""
    exif: Exif | None = None
    """Whether masks are of the photo as ``turned`` by its EXIF orientation or as ``stored``; None for an array."""

    def __len__(self) -> int:
        return len(self.rles)

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of the photo and of every mask."""
        return self.photo.size if isinstance(self.photo, PhotoFile) else (self.photo.shape[0], self.photo.shape[1])

    @cached_property
    def image(self) -> npt.NDArray[np.uint8]:
        """The photo, uint8 (h, w, 3) RGB.

        Of a large file it is read anew when it is first asked for; then ``DataError`` says if the file has changed.
        """
        return self.photo.load() if isinstance(self.photo, PhotoFile) else self.photo

    @property
    def boxes(self) -> npt.NDArray[np.float64]:
        """Tight boxes of the masks: (N, 4), x, y, width, height in pixels."""
        return np.asarray(coco_mask.toBbox(self.rles)) if self.rles else np.zeros((0, 4))

    def masks(self) -> npt.NDArray[np.bool_]:
        """All masks: bool (N, h, w). Where that is too large, :meth:`iter_masks` gives one at a time."""
        masks = np.zeros((len(self), *self.size), dtype=bool)
        for out, mask in zip(masks, self.iter_masks(), strict=True):
            out[:] = mask
        return masks

    def iter_masks(self) -> Iterator[npt.NDArray[np.bool_]]:
        """The masks, one at a time: bool (h, w) each."""
        return (coco_mask.decode(rle).astype(bool) for rle in self.rles)

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """COCO results of this image, ready for ``json.dump``. All have category 1, because proposals have no class."""
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

    def save_overlay(self, path: str | Path, limit: int = 20, max_side: int | None = 4096) -> None:
        """Write the photo with the best ``limit`` masks in distinct colours, as PNG or JPEG by the path's suffix.

        The picture's longer side has at most ``max_side`` pixels (None: no limit). Raises ``ValueError`` for another
        suffix.
        """
        format_of(path)
        if isinstance(self.photo, PhotoFile):
            picture = self.photo.load(max_side)
        else:
            picture = reduced(self.photo, max_side)
        scores = self.scores.tolist()
        best = sorted(range(len(self)), key=lambda i: -scores[i])[:limit]
        rles = [resized(self.rles[i], picture.shape[:2]) for i in best]
        save_picture(overlay(picture, rles, [scores[i] for i in best], limit=limit), path)


def resized(rle: Rle, size: tuple[int, ...]) -> Rle:
    """A mask at another ``size`` (h, w): each pixel has the value at its centre."""
    if tuple(rle["size"]) == size:
        return rle
    mask = coco_mask.decode(rle)
    rows, cols = (((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(size, mask.shape, strict=True))
    return dict(coco_mask.encode(np.asfortranarray(mask[np.ix_(rows, cols)])))


def suppress(
    rles: list[Rle],
    scores: npt.NDArray[np.float32],
    *,
    mask_nms: float | None = None,
    box_nms: float | None = None,
    soft: bool = False,
) -> tuple[list[int], npt.NDArray[np.float32]]:
    """Non-maximum suppression: the positions of the proposals that stay, best first, and their scores.

    The best proposal left drops all others whose mask overlaps its own by an IoU above ``mask_nms``, or whose box
    overlaps its own by an IoU above ``box_nms``; then the next best does the same. ``soft`` multiplies their scores
    by 1 - IoU instead of dropping them (linear Soft-NMS, Bodla et al., ICCV 2017). Equal scores keep their order.
    """
    scores, left, order = scores.copy(), np.ones(len(rles), dtype=bool), []
    limited: list[tuple[float, MaskOverlaps | BoxOverlaps]] = []
    if mask_nms is not None and rles:
        limited.append((mask_nms, MaskOverlaps(rles, mask_nms)))
    if box_nms is not None and rles:
        limited.append((box_nms, BoxOverlaps(rles)))
    while left.any():
        best = int(np.where(left, scores, -1).argmax())
        order.append(best)
        left[best] = False
        decay = np.ones(len(rles), dtype=np.float32)
        for limit, overlaps in limited:
            near, overlap = overlaps.row(best, left)
            over = near[overlap > limit]
            decay[over] = np.minimum(decay[over], (1 - overlap[overlap > limit]) * soft)
        scores *= decay
        left &= decay > 0
    return order, scores[order]


Row = tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]
"""Positions of masks, and the IoU of one mask with each of them."""


class BoxOverlaps:
    """IoU of boxes."""

    def __init__(self, rles: list[Rle]) -> None:
        self.boxes = np.asarray(coco_mask.toBbox(rles))

    def row(self, i: int, left: npt.NDArray[np.bool_]) -> Row:
        """IoU of the i-th with those that are ``left``."""
        near = np.flatnonzero(left)
        boxes = self.boxes[near]
        return near, np.asarray(coco_mask.iou(self.boxes[i : i + 1], boxes, [0] * len(boxes))).reshape(-1)


class MaskOverlaps:
    """IoU of masks where it may exceed ``limit``.

    Two masks share at most what their boxes share, and at most the smaller one. Few pairs are left to be compared.
    """

    def __init__(self, rles: list[Rle], limit: float) -> None:
        self.rles, self.limit = rles, limit
        x, y, width, height = np.array(coco_mask.toBbox(rles)).T
        self.left, self.right, self.top, self.bottom = map(np.ascontiguousarray, (x, x + width, y, y + height))
        # pycocotools' area fails on more than 255 masks with numpy 2.
        parts = [coco_mask.area(rles[i : i + 255]) for i in range(0, len(rles), 255)]
        self.area = np.concatenate(parts).astype(np.float64)

    def row(self, i: int, left: npt.NDArray[np.bool_]) -> Row:
        """IoU of the i-th with those that are ``left`` and near it."""
        width = np.minimum(self.right[i], self.right) - np.maximum(self.left[i], self.left)
        height = np.minimum(self.bottom[i], self.bottom) - np.maximum(self.top[i], self.top)
        most = np.minimum(width.clip(0) * height.clip(0), np.minimum(self.area[i], self.area))
        near = np.flatnonzero((most > self.limit * (self.area[i] + self.area - most)) & left)
        masks = [self.rles[j] for j in near]
        return near, coco_mask.iou([self.rles[i]], masks, [0] * len(masks))[0] if masks else np.zeros(0)

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
from ..formats import outputs as formats
from ..packages import needed
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
    stability: npt.NDArray[np.float32] | None = None
    """How sharp each mask is, in [0, 1], (N); None where that is not known."""
    windows: npt.NDArray[np.float64] | None = None
    """The window that each mask was read in: (N, 4), x, y, width, height in pixels of the photo, which it may leave."""

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

    @property
    def areas(self) -> npt.NDArray[np.float64]:
        """The number of pixels of each mask, (N)."""
        return areas(self.rles)

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
                "area": int(area),
                **own,
            }
            for rle, box, score, area, own in zip(
                self.rles, self.boxes, self.scores, self.areas, self._of_windows(), strict=True
            )
        ]

    def _of_windows(self) -> Iterator[dict[str, Any]]:
        """What is known of the window of each mask, as JSON has it."""
        for i in range(len(self)):
            sharp = {} if self.stability is None else {"stability": float(self.stability[i])}
            yield sharp if self.windows is None else sharp | {"window": self.windows[i].tolist()}

    def to_supervision(self) -> Any:
        """The proposals as ``supervision.Detections``, in their order.

        Boxes are corners (x0, y0, x1, y1), x1 and y1 beyond the last pixel; the score is the confidence, and all have
        class 0. ``data`` has ``area``, and ``stability`` and ``window`` where they are known. Raises ``DataError``
        without the package supervision.
        """
        detections = needed("supervision", "to_supervision").Detections
        known = {"area": self.areas, "stability": self.stability, "window": self.windows}
        return detections(
            xyxy=np.concatenate([self.boxes[:, :2], self.boxes[:, :2] + self.boxes[:, 2:]], 1),
            mask=self.masks(),
            confidence=self.scores,
            class_id=np.zeros(len(self), dtype=int),
            data={name: values for name, values in known.items() if values is not None},
        )

    def to_labelme(self, image: str | Path) -> dict[str, Any]:
        """The proposals as a labelme document, ready for ``json.dump``.

        ``image``: the photo's path as labelme will open it, relative to the JSON file. A mask of several parts is
        several polygons with one ``group_id``; polygons draw the masks' pixels exactly, holes too. Raises ``DataError``
        without the package supervision.
        """
        return formats.labelme(self.iter_masks(), self.scores.tolist(), self.size, Path(image).as_posix())

    def to_yolo(self) -> str:
        """The proposals as a YOLO segmentation label: a line each, all of class 0, without their scores.

        Parts of a mask are joined by lines of one pixel, because a line is an object; a mask of one part keeps its
        pixels exactly, holes too. Raises ``DataError`` without the package supervision.
        """
        return formats.yolo(self.iter_masks(), self.size)

    def to_png(self, folder: str | Path) -> None:
        """Write the masks as pictures into a folder, which is made.

        ``mask_00001.png`` and so on are black and white, best first. ``index.png`` holds at each pixel the number of
        the best mask there, 0 for none: 8-bit, of more than 255 masks 16-bit. Raises ``DataError`` for more than 65,535
        masks, ``OSError`` for a folder that cannot be written.
        """
        formats.png(self.iter_masks(), len(self), self.size, Path(folder))

    def cutouts(self) -> list[npt.NDArray[np.uint8]]:
        """Each object cut out of the photo: uint8 (h', w', 4) RGBA of its box, transparent outside of the mask."""
        return formats.cutouts(self.image, self.iter_masks(), self.boxes)

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


def areas(rles: list[Rle]) -> npt.NDArray[np.float64]:
    """The number of pixels of each mask, (N)."""
    # pycocotools' area fails on more than 255 masks with numpy 2.
    parts = [coco_mask.area(rles[i : i + 255]) for i in range(0, len(rles), 255)]
    return np.concatenate([np.zeros(0), *parts]).astype(np.float64)


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
        self.area = areas(rles)

    def row(self, i: int, left: npt.NDArray[np.bool_]) -> Row:
        """IoU of the i-th with those that are ``left`` and near it."""
        width = np.minimum(self.right[i], self.right) - np.maximum(self.left[i], self.left)
        height = np.minimum(self.bottom[i], self.bottom) - np.maximum(self.top[i], self.top)
        most = np.minimum(width.clip(0) * height.clip(0), np.minimum(self.area[i], self.area))
        near = np.flatnonzero((most > self.limit * (self.area[i] + self.area - most)) & left)
        masks = [self.rles[j] for j in near]
        return near, coco_mask.iou([self.rles[i]], masks, [0] * len(masks))[0] if masks else np.zeros(0)

"""What other programs read: labelme's JSON, the lines of a YOLO segmentation label, PNG pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from ..visualize import save_picture
from .polygons import Mask, joined, rings

NAME: Final = "object"
"""The class of proposals, which have none."""
LABELME_VERSION: Final = "5.5.0"
"""Whose form of JSON is written."""
MOST_INDEXED: Final = 65_535
"""The largest index in a 16-bit picture."""


def labelme(masks: Iterable[Mask], scores: Sequence[float], size: tuple[int, int], image: str) -> dict[str, Any]:
    """A labelme document for the photo ``image`` of ``size`` (h, w): a polygon for each part of a mask."""
    shapes = []
    for number, (mask, score) in enumerate(zip(masks, scores, strict=True)):
        parts = rings(mask, "labelme")
        shapes += [
            {
                "label": NAME,
                "points": ring.astype(float).tolist(),
                "group_id": number if len(parts) > 1 else None,
                "description": f"score {score:.4f}",
                "shape_type": "polygon",
                "flags": {},
                "mask": None,
            }
            for ring in parts
        ]
    return {
        "version": LABELME_VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": image,
        "imageData": None,
        "imageHeight": size[0],
        "imageWidth": size[1],
    }


def yolo(masks: Iterable[Mask], size: tuple[int, int]) -> str:
    """The lines of a YOLO segmentation label for a photo of ``size`` (h, w): one an object, whose parts are joined."""
    height, width = size
    lines = []
    for mask in masks:
        if parts := rings(mask, "yolo"):
            # A quarter of a pixel on: readers that round and readers that cut off get the same pixel.
            places = (joined(parts) + 0.25) / (width, height)
            lines.append("0 " + " ".join(f"{value:.6f}" for value in places.flatten()) + "\n")
    return "".join(lines)


def png(masks: Iterable[Mask], count: int, size: tuple[int, int], folder: Path) -> None:
    """Write ``count`` masks into a folder, see :meth:`sharpmask.Proposals.to_png`."""
    if count > MOST_INDEXED:
        raise DataError(f"png must have at most {MOST_INDEXED} masks, got {count}")
    index = np.zeros(size, dtype=np.uint8 if count < 256 else np.uint16)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.png").unlink(missing_ok=True)  # it is written last, so it stands for all
    names = [f"mask_{number:05d}.png" for number in range(1, count + 1)]
    for number, (mask, name) in enumerate(zip(masks, names, strict=True), 1):
        save_picture(mask, folder / name)
        index[mask & (index == 0)] = number
    for old in folder.glob("mask_[0-9][0-9][0-9][0-9][0-9].png"):
        if old.name not in names:
            old.unlink()
    save_picture(index, folder / "index.png")


def cutouts(photo: npt.NDArray[np.uint8], masks: Iterable[Mask], boxes: Iterable[Sequence[float]]) -> list[Any]:
    """See :meth:`sharpmask.Proposals.cutouts`."""
    found = []
    for mask, box in zip(masks, boxes, strict=True):
        x, y, width, height = map(int, box)
        place = slice(y, y + height), slice(x, x + width)
        found.append(np.dstack([photo[place], mask[place] * np.uint8(255)]))
    return found

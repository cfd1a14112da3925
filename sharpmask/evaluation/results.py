"""COCO ground truth and results, checked as they are read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias, get_args

from pycocotools.coco import COCO

from ..data.annotations import decode_counts
from ..data.orientation import Exif
from ..errors import DataError

GroundTruth: TypeAlias = Mapping[str, Any] | COCO
"""A COCO `instances` dict or a `COCO` object."""


def instances(ground_truth: GroundTruth) -> Mapping[str, Any]:
    """The COCO `instances` dict of a ground truth. Raises DataError if it is not one."""
    dataset = ground_truth.dataset if isinstance(ground_truth, COCO) else ground_truth
    if not isinstance(dataset, Mapping) or not {"images", "annotations"} <= set(dataset):
        raise DataError("ground truth must be a COCO instances dict with 'images' and 'annotations'")
    return dataset


def load_results(path: Path | str, ground_truth: GroundTruth) -> list[dict[str, Any]]:
    """The entries of a COCO results JSON from an untrusted source. Every entry is checked; unknown keys are dropped.

    Each entry needs an image_id of the ground truth, a finite score, and a compressed RLE of exactly its
    image's size, a bbox of four finite numbers (x, y, width, height), or both. Those of `propose` also say in `exif`
    which of their photo's pixels they mean. Raises DataError naming file and entry.
    """
    path = Path(path)
    try:
        entries = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a readable JSON file ({error})") from error
    if not isinstance(entries, list):
        raise DataError(f"{path}: must be a list of results, got {type(entries).__name__}")
    sizes = {image["id"]: (image["height"], image["width"]) for image in instances(ground_truth)["images"]}
    return [_checked_entry(f"{path}: entry {index}", entry, sizes) for index, entry in enumerate(entries)]


def short(value: Any) -> str:
    """`repr(value)`, cut to fit an error message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _checked_entry(where: str, entry: Any, sizes: Mapping[int, tuple[int, int]]) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise DataError(f"{where}: must be an object, got {short(entry)}")
    image_id = entry.get("image_id")
    if type(image_id) is not int or image_id not in sizes:
        raise DataError(f"{where}: image_id {short(image_id)} is not in the ground truth")
    if not _is_finite(entry.get("score")):
        raise DataError(f"{where}: score must be a finite number, got {short(entry.get('score'))}")
    checked: dict[str, Any] = {"image_id": image_id, "category_id": 1, "score": float(entry["score"])}
    if "segmentation" in entry:
        checked["segmentation"] = _checked_rle(where, entry["segmentation"], sizes[image_id])
    if "bbox" in entry:
        checked["bbox"] = _checked_box(where, entry["bbox"])
    if entry.get("exif") in get_args(Exif):
        checked["exif"] = entry["exif"]
    if "segmentation" not in entry and "bbox" not in entry:
        raise DataError(f"{where}: must have a segmentation or a bbox, got neither")
    return checked


def _checked_rle(where: str, rle: Any, size: tuple[int, int]) -> dict[str, Any]:
    """The RLE, if its runs fill its image exactly: pycocotools' C code does not check them."""
    if not isinstance(rle, dict) or rle.get("size") != list(size):
        came = rle.get("size") if isinstance(rle, dict) else rle
        raise DataError(f"{where}: segmentation must be an RLE of its image's size {list(size)}, got {short(came)}")
    counts = rle.get("counts")
    if not isinstance(counts, str) or not counts.isascii():
        raise DataError(f"{where}: counts must be compressed RLE, a string, got {short(counts)}")
    try:
        runs = decode_counts(counts.encode("ascii"), size[0] * size[1])
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None
    if (runs < 0).any() or runs.sum() != size[0] * size[1]:
        raise DataError(f"{where}: RLE runs must be >= 0 and {size[0] * size[1]} in all, got {int(runs.sum())}")
    return {"size": list(size), "counts": counts.encode("ascii")}


def _checked_box(where: str, box: Any) -> list[float]:
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)) or min(box[2:]) < 0:
        raise DataError(f"{where}: bbox must be [x, y, width, height], 4 finite numbers, got {short(box)}")
    return [float(v) for v in box]


def _is_finite(value: Any) -> bool:
    # The bound excludes integers that do not fit a float, and numbers whose product would overflow.
    return type(value) in (int, float) and abs(value) <= 1e100

"""Average recall of proposals by COCO's protocol, class-agnostic."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..errors import DataError
from .results import GroundTruth, instances, short

Kind = Literal["segm", "bbox"]

SIZES = ("all", "small", "medium", "large")
"""COCO's area ranges: "small" is below 32^2 pixels, "medium" up to 96^2, "large" above."""
CURVE_COUNTS = (1, 2, 3, 4, 5, 7, 10, 14, 20, 30, 40, 50, 70, 100, 140, 200, 300, 400, 500, 700, 1000)
"""Proposals per image at which AR is read for the area under its curve; about evenly spaced on a logarithmic axis."""
SHAPE_KEYS: Mapping[Kind, str] = {"segm": "segmentation", "bbox": "bbox"}
"""The entry of an annotation that holds its shape."""
THRESHOLDS = 10
"""IoU thresholds, .5:.05:.95; these are COCOeval's."""


@dataclass(frozen=True)
class Recall:
    """Average recall (AR) as fractions in [0, 1]; NaN where the ground truth has no object of that size."""

    kind: Kind
    ar: dict[int, dict[str, float]]
    """AR by number of proposals per image, then by size ("all", "small", "medium", "large")."""
    auc: dict[str, float]
    """Area under AR against log10(number of proposals), by size."""
    curve: list[tuple[int, float]]
    """(number of proposals, AR over all sizes) at `CURVE_COUNTS`."""
    most: int
    """The largest number of proposals that an image has. AR at a larger number is AR at this one."""

    def to_json(self) -> dict[str, Any]:
        """A dict that `json.dumps` accepts: NaN becomes None, numbers of proposals become strings."""
        return {
            "kind": self.kind,
            "most": self.most,
            "ar": {str(count): _none_for_nan(sizes) for count, sizes in self.ar.items()},
            "auc": _none_for_nan(self.auc),
            "curve": [[count, None if math.isnan(value) else value] for count, value in self.curve],
        }


def average_recall(
    ground_truth: GroundTruth,
    results: Sequence[Mapping[str, Any]],
    *,
    kind: Kind = "segm",
    counts: Sequence[int] = (10, 100, 1000),
) -> Recall:
    """Class-agnostic average recall over IoU .5:.05:.95 at each number of proposals per image.

    ground_truth: a COCO `instances` dict or a `COCO` object; neither is changed. results: COCO results with
    image_id, score and a compressed RLE `segmentation` (kind "segm") or `bbox` (kind "bbox"; where it is
    missing, the tight box of the mask). RLEs must be valid, see `load_results`.

    An object's box and area are its mask's, whatever `bbox` and `area` say; these count where there is no mask.

    Matching is pycocotools' with `useCats=0`: crowds are ignored regions, an image without results has recall 0.
    Category ids of the results are ignored. The numbers are those of `COCOeval.eval["recall"]` for such boxes and
    areas; COCOeval's printed summary supports its default counts only.

    AUC is the area under AR against log10(count) from 1 to 1000, by trapezoids over `CURVE_COUNTS`, divided by
    the width of the axis. The papers give no formula; this one was inferred from their tables.

    Raises DataError for an entry of an unknown image or without what `kind` needs, ValueError for an unknown
    `kind` and for `counts` below 1.
    """
    if kind not in ("segm", "bbox"):
        raise ValueError(f"kind must be 'segm' or 'bbox', got {kind!r}")
    if not counts or any(count < 1 for count in counts):
        raise ValueError(f"counts must be whole numbers from 1 up, got {list(counts)}")
    dataset = instances(ground_truth)
    images = {image["id"]: image for image in dataset["images"]}
    annotations = (_object(index, entry, kind, images) for index, entry in enumerate(dataset["annotations"]))
    objects = _by_image(dataset, "ground truth", annotations)
    candidates = (_proposal(index, entry, kind) for index, entry in enumerate(results))
    proposals = _by_image(dataset, "results", candidates)
    tally = Tally(kind, ranks=max(*counts, CURVE_COUNTS[-1]))
    for image in dataset["images"]:
        tally.add(image, objects[image["id"]], proposals[image["id"]])
    recall = tally.recall()
    curve = recall[:, np.array(CURVE_COUNTS) - 1]
    return Recall(
        kind=kind,
        ar={count: _by_size(recall[:, count - 1]) for count in counts},
        auc=_by_size(_area_under(curve)),
        curve=list(zip(CURVE_COUNTS, curve[SIZES.index("all")].tolist(), strict=True)),
        most=max(map(len, proposals.values()), default=0),
    )


class Tally:
    """Counts, image by image, the objects that the best proposals find.

    An object is counted at the rank of the proposal that finds it, so the recall at every number of proposals
    is a running sum over ranks. `COCOeval.accumulate` instead sorts all proposals of the data set anew for
    each number.
    """

    def __init__(self, kind: Kind, ranks: int) -> None:
        self.kind, self.ranks = kind, ranks
        self.found = np.zeros((len(SIZES), THRESHOLDS, ranks), np.int64)  # [size, IoU threshold, rank]
        self.objects = np.zeros(len(SIZES), np.int64)

    def add(self, image: Mapping[str, Any], objects: list[dict[str, Any]], proposals: Sequence[dict[str, Any]]) -> None:
        """Match one image's proposals with its objects, both as COCOeval takes them; `objects` are changed."""
        if not objects:
            return
        best = sorted(proposals, key=lambda proposal: -proposal["score"])[: self.ranks]
        # COCO's order is by category. It decides between objects that one proposal covers equally well.
        objects = sorted(objects, key=lambda entry: entry["category_id"])
        for entry in objects:
            entry["category_id"] = 1
        ranks = self._overlapping(objects, best)
        with contextlib.redirect_stdout(io.StringIO()):
            run = COCOeval(_coco(image, objects), _coco(image, [best[rank] for rank in ranks]), self.kind)
            run.params.useCats = 0
            run.params.maxDets = [self.ranks]
            run.evaluate()
        for size, matched in enumerate(run.evalImgs):
            found = (matched["dtMatches"] > 0) & ~matched["dtIgnore"].astype(bool)
            self.found[size][:, ranks] += found
            self.objects[size] += np.count_nonzero(matched["gtIgnore"] == 0)

    def _overlapping(self, objects: Sequence[dict[str, Any]], best: Sequence[dict[str, Any]]) -> np.ndarray:
        """Ranks of the proposals that match an object at the lowest threshold.

        COCOeval matches in plain Python, so the many other proposals are kept from it.
        """
        if not best:
            return np.zeros(0, np.int64)
        shape = SHAPE_KEYS[self.kind]
        crowds = [entry["iscrowd"] for entry in objects]
        overlaps = coco_mask.iou([p[shape] for p in best], [entry[shape] for entry in objects], crowds)
        return np.flatnonzero(overlaps.max(axis=1) >= 0.5)

    def recall(self) -> np.ndarray:
        """Recall [size, number of proposals - 1], averaged over the thresholds; NaN for sizes without objects."""
        with np.errstate(invalid="ignore"):
            return (self.found.cumsum(axis=2) / self.objects[:, None, None]).mean(axis=1)


def _area_under(curve: np.ndarray) -> np.ndarray:
    """Area under each row of `curve` [size, `CURVE_COUNTS`], over the width of the logarithmic axis."""
    axis = np.log10(CURVE_COUNTS)
    return ((curve[:, 1:] + curve[:, :-1]) / 2 * np.diff(axis)).sum(axis=1) / (axis[-1] - axis[0])


def _by_size(values: np.ndarray) -> dict[str, float]:
    return dict(zip(SIZES, values.tolist(), strict=True))


def _object(index: int, annotation: Mapping[str, Any], kind: Kind, images: Mapping[Any, Any]) -> dict[str, Any]:
    """One annotation for COCOeval, with the box and area of its mask. It is a new dict: COCOeval writes into it.

    Its id is at least 1, because COCOeval takes an object with id 0 for one that was not found.
    """
    has_mask = bool(annotation.get("segmentation"))
    shape = "segmentation" if has_mask else SHAPE_KEYS[kind]
    for key in ("image_id", shape):
        if annotation.get(key) is None or annotation[key] == []:
            raise DataError(f"ground truth: annotation {annotation.get('id', index)} has no '{key}'")
    entry = {
        "id": index + 1,
        "image_id": annotation["image_id"],
        "category_id": annotation.get("category_id", 1),
        "iscrowd": int(annotation.get("iscrowd") or 0),
    }
    if not has_mask:
        box = annotation["bbox"]
        area = annotation.get("area")
        return {**entry, "bbox": box, "area": box[2] * box[3] if area is None else area}
    if entry["image_id"] not in images:  # `_by_image` says so
        return entry
    mask = _to_rle(annotation["segmentation"], images[entry["image_id"]])
    value = mask if kind == "segm" else coco_mask.toBbox(mask).tolist()
    return {**entry, SHAPE_KEYS[kind]: value, "area": float(coco_mask.area(mask))}


def _proposal(index: int, entry: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    """One result for COCOeval, with a mask or a box but not both, and with the area of that shape."""
    shape = "bbox" if kind == "bbox" and "bbox" in entry else "segmentation"
    for key in ("image_id", "score", shape):
        if key not in entry:
            raise DataError(f"results: entry {index} has no '{key}'")
    proposal = {"id": index + 1, "image_id": entry["image_id"], "category_id": 1, "score": entry["score"]}
    if kind == "segm":
        mask = entry["segmentation"]
        return {**proposal, "segmentation": mask, "area": float(coco_mask.area(mask))}
    box = [float(v) for v in (entry["bbox"] if shape == "bbox" else coco_mask.toBbox(entry["segmentation"]))]
    return {**proposal, "bbox": box, "area": box[2] * box[3]}


def _by_image(
    dataset: Mapping[str, Any], source: str, entries: Iterable[dict[str, Any]]
) -> dict[Any, list[dict[str, Any]]]:
    """`entries` in lists by image id, with an empty list for an image that has none."""
    groups: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in dataset["images"]}
    for index, entry in enumerate(entries):
        if entry["image_id"] not in groups:
            raise DataError(f"{source}: entry {index} has unknown image_id {short(entry['image_id'])}")
        groups[entry["image_id"]].append(entry)
    return groups


def _coco(image: Mapping[str, Any], annotations: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {"images": [image], "annotations": annotations, "categories": [{"id": 1}]}
    coco.createIndex()
    return coco


def _to_rle(segmentation: Any, image: Mapping[str, Any]) -> Any:
    """Polygons, uncompressed RLE or compressed RLE as compressed RLE."""
    height, width = image["height"], image["width"]
    if isinstance(segmentation, Mapping):
        if not isinstance(segmentation["counts"], list):
            return segmentation
        return coco_mask.frPyObjects(dict(segmentation), height, width)
    return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))


def _none_for_nan(values: Mapping[str, float]) -> dict[str, float | None]:
    return {key: None if math.isnan(value) else value for key, value in values.items()}

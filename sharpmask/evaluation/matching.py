"""Which proposal finds which object: COCO's matching, kept object by object."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..errors import DataError
from .results import GroundTruth, instances, short

Kind = Literal["segm", "bbox"]

SIZES = ("all", "small", "medium", "large")
"""COCO's area ranges: "small" is up to 32^2 pixels, "medium" from there to 96^2, "large" from there on."""
SHAPE_KEYS: Mapping[Kind, str] = {"segm": "segmentation", "bbox": "bbox"}
"""The entry of an annotation that holds its shape."""
THRESHOLDS = 10
"""IoU thresholds, .5:.05:.95; these are COCOeval's."""
LIMIT = 1000
"""Proposals of a photo that are matched, the best ones."""
NEVER = int(np.iinfo(np.int32).max)
"""The rank of an object that no proposal finds."""
FIRST = 100
"""The best proposals of a photo, among which the nearest one to an object is told beside that of all."""

Entry = Mapping[str, Any]
Numbered = tuple[int, Entry]
"""An entry and its place in the list that it came in."""


@dataclass(frozen=True)
class Matches:
    """What the proposals find of each of M annotated objects; crowds are none.

    Ranks count a photo's proposals from 0, best score first. `nearest` fields have two rows: of the first `FIRST`
    proposals, and of all that are matched.
    """

    kind: Kind
    most: int
    """The largest number of proposals that a photo has."""
    photos: NDArray[np.int64]
    """(M,) place of the object's photo among the ground truth's images."""
    objects: NDArray[np.int64]
    """(M,) place of the object among the ground truth's annotations."""
    areas: NDArray[np.float64]
    """(M,) pixels of the object."""
    counted: NDArray[np.bool_]
    """(4, M) whether the object has this one of `SIZES`. One of 32^2 pixels is small and medium, as in COCO."""
    ranks: NDArray[np.int32]
    """(4, M, 10) rank of the proposal that finds the object, by the size that is asked for and by IoU threshold;
    `NEVER` where none does."""
    nearest_iou: NDArray[np.float64]
    """(2, M) largest IoU of a proposal with the object, whatever else that proposal finds."""
    nearest_rank: NDArray[np.int64]
    """(2, M) its rank; -1 where the IoU is 0."""
    nearest_result: NDArray[np.int64]
    """(2, M) its place among the results; -1 where the IoU is 0."""


def match_objects(
    ground_truth: GroundTruth, results: Sequence[Entry], *, kind: Kind = "segm", limit: int = LIMIT
) -> Matches:
    """Match the `limit` best proposals of every photo with its objects, as `average_recall` says.

    Arguments are those of `average_recall`. Raises DataError for an entry of an unknown image or without what `kind`
    needs, ValueError for an unknown `kind` and a `limit` below 1.
    """
    if kind not in ("segm", "bbox"):
        raise ValueError(f"kind must be 'segm' or 'bbox', got {kind!r}")
    if limit < 1:
        raise ValueError(f"limit must be a whole number from 1 up, got {limit}")
    dataset = instances(ground_truth)
    objects = _by_image(dataset, "ground truth", dataset["annotations"])
    proposals = _by_image(dataset, "results", results)
    found = []
    for place, image in enumerate(dataset["images"]):
        of_photo = _match_photo(image, objects[image["id"]], proposals[image["id"]], kind, limit)
        found.append({"photos": np.full(len(of_photo["objects"]), place), **of_photo})
    empty = {"photos": np.zeros(0, np.int64), **_match_photo({}, [], [], kind, limit)}
    columns = {
        name: np.concatenate([part[name] for part in [empty, *found]], axis=-2 if name == "ranks" else -1)
        for name in empty
    }
    return Matches(kind=kind, most=max(map(len, proposals.values()), default=0), **columns)


def _match_photo(
    image: Entry, objects: Sequence[Numbered], results: Sequence[Numbered], kind: Kind, limit: int
) -> dict[str, NDArray[Any]]:
    """One photo's columns of `Matches`."""
    # COCO's order is by category. It decides between objects that one proposal covers equally well.
    shapes = [_object(*numbered, kind, image) for numbered in objects]
    order = sorted(range(len(shapes)), key=lambda j: shapes[j]["category_id"])
    # COCOeval writes into these, and takes an object with id 0 for one that was not found.
    shapes = [shapes[j] | {"id": number, "category_id": 1} for number, j in enumerate(order, start=1)]
    for place, entry in results:
        _require(entry, ("score", _shape_of(entry, kind)), f"results: entry {place}")
    best = sorted(results, key=lambda numbered: -numbered[1]["score"])[:limit] if shapes else []
    candidates = [_proposal(rank, entry, kind) for rank, (_, entry) in enumerate(best)]
    single = np.array([not entry["iscrowd"] for entry in shapes], bool)
    overlaps = _overlaps(candidates, shapes, kind)
    ranks, counted = _ranks(image, shapes, candidates, overlaps, kind, limit)
    columns = {
        "objects": np.array([objects[j][0] for j in order], np.int64)[single],
        "areas": np.array([entry["area"] for entry in shapes], np.float64)[single],
        "counted": counted[:, single],
        "ranks": ranks[:, single],
    }
    places = np.array([place for place, _ in best], np.int64)
    return columns | _nearest(overlaps[:, single], places)


def _overlaps(candidates: Sequence[Entry], shapes: Sequence[Entry], kind: Kind) -> NDArray[np.float64]:
    """IoU of each proposal with each object (with a crowd: the proposal's share inside), [proposal, object]."""
    if not candidates or not shapes:
        return np.zeros((len(candidates), len(shapes)))
    shape, crowds = SHAPE_KEYS[kind], [entry["iscrowd"] for entry in shapes]
    overlaps: NDArray[np.float64] = coco_mask.iou(
        [entry[shape] for entry in candidates], [entry[shape] for entry in shapes], crowds
    )
    return overlaps


def _ranks(
    image: Entry,
    shapes: list[dict[str, Any]],
    candidates: Sequence[dict[str, Any]],
    overlaps: NDArray[np.float64],
    kind: Kind,
    limit: int,
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """`Matches.ranks` and `Matches.counted` of one photo's objects, crowds included."""
    ranks = np.full((len(SIZES), len(shapes), THRESHOLDS), NEVER, np.int32)
    counted = np.zeros((len(SIZES), len(shapes)), bool)
    if not shapes:
        return ranks, counted
    # COCOeval matches in plain Python, so proposals that find nothing even at the lowest threshold are kept from it.
    finding = [candidates[rank] for rank in np.flatnonzero(overlaps.max(axis=1) >= 0.5).tolist()]
    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval(_coco(image, shapes), _coco(image, finding), kind)
        run.params.useCats = 0
        run.params.maxDets = [limit]
        run.evaluate()
    for size, matched in enumerate(run.evalImgs):
        at = np.array(matched["gtIds"]) - 1
        finder = matched["gtMatches"].T  # [object, threshold], id of the proposal, 0 for none
        ranks[size, at] = np.where(finder > 0, finder - 1, NEVER)
        counted[size, at] = matched["gtIgnore"] == 0
    return ranks, counted


def _nearest(overlaps: NDArray[np.float64], places: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """The `nearest` columns of one photo's objects. places: of the proposals among the results."""
    iou = np.zeros((2, overlaps.shape[1]))
    rank = np.full(iou.shape, -1)
    result = np.full(iou.shape, -1)
    if len(overlaps):
        for row, most in enumerate((FIRST, None)):
            best = overlaps[:most].argmax(axis=0)
            iou[row] = np.take_along_axis(overlaps, best[None], axis=0)[0]
            rank[row] = np.where(iou[row] > 0, best, -1)
            result[row] = np.where(iou[row] > 0, places[best], -1)
    return {"nearest_iou": iou, "nearest_rank": rank, "nearest_result": result}


def _object(place: int, annotation: Entry, kind: Kind, image: Entry) -> dict[str, Any]:
    """One annotation for COCOeval, with the box and area of its mask."""
    has_mask = bool(annotation.get("segmentation"))
    shape = "segmentation" if has_mask else SHAPE_KEYS[kind]
    if annotation.get(shape) is None or annotation[shape] == []:
        raise DataError(f"ground truth: annotation {annotation.get('id', place)} has no '{shape}'")
    entry = {
        "image_id": annotation["image_id"],
        "category_id": annotation.get("category_id", 1),
        "iscrowd": int(annotation.get("iscrowd") or 0),
    }
    if not has_mask:
        box = annotation["bbox"]
        area = annotation.get("area")
        return {**entry, "bbox": box, "area": box[2] * box[3] if area is None else area}
    mask = as_rle(annotation["segmentation"], image)
    value = mask if kind == "segm" else coco_mask.toBbox(mask).tolist()
    return {**entry, SHAPE_KEYS[kind]: value, "area": float(coco_mask.area(mask))}


def _shape_of(entry: Entry, kind: Kind) -> str:
    """The key of a result that holds its shape: without a box, the box is that of its mask."""
    return "bbox" if kind == "bbox" and "bbox" in entry else "segmentation"


def _proposal(rank: int, entry: Entry, kind: Kind) -> dict[str, Any]:
    """One result for COCOeval, with a mask or a box but not both, and with the area of that shape."""
    proposal = {"id": rank + 1, "image_id": entry["image_id"], "category_id": 1, "score": entry["score"]}
    if kind == "segm":
        mask = entry["segmentation"]
        return {**proposal, "segmentation": mask, "area": float(coco_mask.area(mask))}
    given = entry["bbox"] if _shape_of(entry, kind) == "bbox" else coco_mask.toBbox(entry["segmentation"])
    box = [float(v) for v in given]
    return {**proposal, "bbox": box, "area": box[2] * box[3]}


def _require(entry: Entry, keys: Iterable[str], where: str) -> None:
    """Raise DataError unless an entry has `keys`."""
    for key in keys:
        if key not in entry:
            raise DataError(f"{where} has no '{key}'")


def _by_image(dataset: Mapping[str, Any], source: str, entries: Iterable[Entry]) -> dict[Any, list[Numbered]]:
    """`entries` with their places, in lists by image id; an image that has none has an empty list."""
    groups: dict[Any, list[Numbered]] = {image["id"]: [] for image in dataset["images"]}
    for place, entry in enumerate(entries):
        _require(entry, ["image_id"], f"{source}: entry {place}")
        if entry["image_id"] not in groups:
            raise DataError(f"{source}: entry {place} has unknown image_id {short(entry['image_id'])}")
        groups[entry["image_id"]].append((place, entry))
    return groups


def _coco(image: Entry, annotations: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {"images": [image], "annotations": annotations, "categories": [{"id": 1}]}
    coco.createIndex()
    return coco


def as_rle(segmentation: Any, image: Entry) -> Any:
    """Polygons, uncompressed RLE or compressed RLE of an image as compressed RLE."""
    height, width = image["height"], image["width"]
    if isinstance(segmentation, Mapping):
        if not isinstance(segmentation["counts"], list):
            return segmentation
        return coco_mask.frPyObjects(dict(segmentation), height, width)
    return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))

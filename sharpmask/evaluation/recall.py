"""Average recall of proposals (COCO protocol, class-agnostic) and the per-patch metrics used in training."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.table import Table

from sharpmask.data.coco import decode_counts
from sharpmask.errors import DataError
from sharpmask.visualize import new_figure, save_figure, style_axes

Kind = Literal["segm", "bbox"]
GroundTruth: TypeAlias = Mapping[str, Any] | COCO

SIZES = ("all", "small", "medium", "large")  # COCO's area ranges: below 32^2, 32^2 to 96^2, above 96^2 px
# Where AR is read for the area under the curve: about evenly spread on a logarithmic axis.
CURVE_COUNTS = (1, 2, 3, 4, 5, 7, 10, 14, 20, 30, 40, 50, 70, 100, 140, 200, 300, 400, 500, 700, 1000)
# AR at 10, 100, 1000 and AUC on the first 5000 photos of COCO val2014: SharpMask (ECCV 2016), Table 3, and
# DeepMask (NIPS 2015).
PAPER_ROWS: dict[str, dict[str, tuple[float, float, float, float]]] = {
    "segm": {
        "DeepMask (VGG)": (0.126, 0.245, 0.331, 0.183),
        "DeepMask (ResNet)": (0.144, 0.258, 0.331, 0.194),
        "SharpMask": (0.156, 0.276, 0.355, 0.209),
    },
    "bbox": {"DeepMask (VGG)": (0.153, 0.313, 0.446, 0.233)},
}


@dataclass(frozen=True)
class Recall:
    """Average recall (AR) as fractions in [0, 1]; NaN where the ground truth has no object of that size.

    kind: "segm" or "bbox". ar: count -> size -> AR, sizes "all", "small", "medium", "large". auc: size ->
    area under AR against log10(count). curve: (count, AR over all sizes) at `CURVE_COUNTS`.
    """

    kind: Kind
    ar: dict[int, dict[str, float]]
    auc: dict[str, float]
    curve: list[tuple[int, float]]

    def to_json(self) -> dict[str, Any]:
        """A dict that `json.dumps` accepts; NaN becomes None, counts become strings."""
        return {
            "kind": self.kind,
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

    Matching is pycocotools' (`useCats=0`): crowds are ignored regions, an object's size is its annotation's
    `area`, an image without results has recall 0. The numbers are those of `COCOeval.eval["recall"]`, not of
    its printed summary, which knows only its own default counts. Category ids of the results are not looked
    at, so a result counts whatever it claims to be.

    AUC is the area under AR against log10(count) from 1 to 1000, trapezoids over `CURVE_COUNTS`, divided by
    the width of the axis. The papers publish no formula; this one is inferred, as it fits their tables.

    ground_truth: a COCO `instances` dict or a `COCO` object; neither is changed. results: COCO results with
    image_id, score and a compressed RLE `segmentation` (kind "segm") or `bbox` (kind "bbox"; where it is
    missing, the tight box of the mask). RLEs must be valid, see `load_results`.

    Raises DataError for an entry of an unknown image or without what `kind` needs, ValueError for a `kind` or
    `counts` that make no sense.
    """
    if kind not in ("segm", "bbox"):
        raise ValueError(f"kind: expected 'segm' or 'bbox', got {kind!r}")
    if not counts or any(count < 1 for count in counts):
        raise ValueError(f"counts: expected whole numbers from 1 up, got {list(counts)}")
    dataset = _dataset(ground_truth)
    most = max(*counts, CURVE_COUNTS[-1])
    annotations = (_object(index, entry, kind) for index, entry in enumerate(dataset["annotations"]))
    objects = _by_image(dataset, "ground truth", annotations)
    candidates = (_proposal(index, entry, kind) for index, entry in enumerate(results))
    proposals = _by_image(dataset, "results", candidates)
    hits = np.zeros((len(SIZES), 10, most), np.int64)  # [size, IoU threshold, rank of the finder]
    total = np.zeros(len(SIZES), np.int64)
    for image in dataset["images"]:
        best = sorted(proposals[image["id"]], key=lambda proposal: -proposal["score"])[:most]
        _count_found(image, objects[image["id"]], best, kind, hits, total)
    with np.errstate(invalid="ignore"):
        recall = (hits.cumsum(axis=2) / total[:, None, None]).mean(axis=1)  # (size, count)
    axis = np.log10(CURVE_COUNTS)
    heights = recall[:, np.array(CURVE_COUNTS) - 1]
    areas = ((heights[:, 1:] + heights[:, :-1]) / 2 * np.diff(axis)).sum(axis=1) / (axis[-1] - axis[0])
    return Recall(
        kind=kind,
        ar={count: _by_size(recall[:, count - 1]) for count in counts},
        auc=_by_size(areas),
        curve=list(zip(CURVE_COUNTS, heights[SIZES.index("all")].tolist(), strict=True)),
    )


def load_results(path: Path | str, ground_truth: GroundTruth) -> list[dict[str, Any]]:
    """Reads a COCO results JSON from an untrusted source: every entry is checked, unknown keys are dropped.

    Each entry needs an image_id of the ground truth, a finite score, and a compressed RLE of exactly its
    image's size, a bbox of four finite numbers (x, y, width, height), or both. Raises DataError naming file
    and entry.
    """
    path = Path(path)
    try:
        entries = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a readable JSON file ({error})") from error
    if not isinstance(entries, list):
        raise DataError(f"{path}: expected a list of results, got {type(entries).__name__}")
    sizes = {image["id"]: (image["height"], image["width"]) for image in _dataset(ground_truth)["images"]}
    return [_checked_entry(f"{path}: entry {index}", entry, sizes) for index, entry in enumerate(entries)]


def recall_table(rows: Mapping[str, Recall], *, paper: bool = False) -> Table:
    """A table of `rows` (name -> recall) in per cent, "–" where there is nothing to find.

    paper: adds the papers' own figures below, marked, as they come from other data. Rows of two kinds (masks
    and boxes) may share a table, which then has no papers' rows; the names must tell them apart.
    """
    kinds = {recall.kind for recall in rows.values()}
    counts = sorted({count for recall in rows.values() for count in recall.ar})
    table = Table(title=f"Average recall of {' and '.join(_KIND_NAMES[kind] for kind in sorted(kinds))} (%)")
    table.add_column("")
    for heading in (*(f"AR@{count}" for count in counts), "AUC", "AUC-S", "AUC-M", "AUC-L"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, recall in rows.items():
        cells = [recall.ar[count]["all"] if count in recall.ar else math.nan for count in counts]
        table.add_row(name, *map(_percent, [*cells, *(recall.auc[size] for size in SIZES)]))
    if paper and len(kinds) == 1:
        table.caption = "* the papers' figures on COCO val2014: other data, for orientation only"
        table.add_section()
        for name, (*published, auc) in PAPER_ROWS[kinds.pop()].items():
            by_count = dict(zip((10, 100, 1000), published, strict=True))
            cells = [*(by_count.get(count, math.nan) for count in counts), auc, *[math.nan] * 3]
            table.add_row(f"{name}*", *map(_percent, cells), style="dim")
    return table


def plot_recall(curves: Mapping[str, Recall], path: Path | str) -> None:
    """Plots AR against the number of proposals (logarithmic) as a PNG. ImportError without matplotlib."""
    figure = new_figure(6.0, 4.2)
    axes = figure.add_subplot()
    for name, recall in curves.items():
        count, value = zip(*recall.curve, strict=True)
        axes.plot(count, 100 * np.array(value), marker="o", ms=3, linewidth=1.8, label=name)
    axes.set(xscale="log", xlabel="proposals per image", ylabel="average recall (%)")
    axes.set_xlim(1, CURVE_COUNTS[-1])
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    style_axes(axes)
    save_figure(figure, path)


@dataclass(frozen=True)
class MaskMetrics:
    """IoU statistics over patches, fractions in [0, 1]; NaN for no patches."""

    patches: int
    mean: float
    median: float
    share_50: float  # share of patches with IoU >= .5
    share_70: float  # share of patches with IoU >= .7


def mask_iou(logits: torch.Tensor, targets: torch.Tensor, threshold: float = 0.0) -> torch.Tensor:
    """IoU of each patch, (N,) float64 on the CPU: foreground is logits >= threshold and targets > 0.

    logits: (N, H, W) floating; targets: (N, H, W) bool, 0/1 or -1/+1. Two empty masks agree perfectly: IoU 1.
    Raises ValueError when the shapes differ.
    """
    if logits.ndim != 3 or logits.shape != targets.shape:
        raise ValueError(f"logits, targets: expected equal (N, H, W), got {logits.shape} and {targets.shape}")
    predicted, wanted = (logits.detach() >= threshold).flatten(1), (targets > 0).flatten(1)
    overlap = (predicted & wanted).sum(1).double()
    union = (predicted | wanted).sum(1).double()
    return torch.where(union > 0, overlap / union.clamp(min=1), 1.0).cpu()


def mask_metrics(logits: torch.Tensor, targets: torch.Tensor, threshold: float = 0.0) -> MaskMetrics:
    """Mean and median IoU and the shares of good masks over one batch; arguments as for `mask_iou`."""
    return _summary(mask_iou(logits, targets, threshold))


def score_accuracy(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of score logits whose sign agrees with the label: >= 0 says object, a label > 0 (1 or +1) is one.

    NaN for no scores. Raises ValueError when the shapes differ.
    """
    if scores.shape != labels.shape:
        raise ValueError(f"scores, labels: expected equal shapes, got {scores.shape} and {labels.shape}")
    return float(((scores >= 0) == (labels > 0)).double().mean())


class PatchMetrics:
    """Collects patch metrics over batches: `add_masks` and `add_scores` as they come, then `compute`."""

    def __init__(self, threshold: float = 0.0) -> None:
        self.threshold = threshold
        self._ious: list[torch.Tensor] = []
        self._agreed = 0.0
        self._scored = 0

    def add_masks(self, logits: torch.Tensor, targets: torch.Tensor) -> None:
        """Adds a batch of masks; arguments as for `mask_iou`."""
        self._ious.append(mask_iou(logits, targets, self.threshold))

    def add_scores(self, scores: torch.Tensor, labels: torch.Tensor) -> None:
        """Adds a batch of score logits; arguments as for `score_accuracy`."""
        if scores.numel():
            self._agreed += score_accuracy(scores, labels) * scores.numel()
            self._scored += scores.numel()

    def masks(self) -> MaskMetrics:
        """IoU statistics over all masks added so far."""
        return _summary(torch.cat([torch.empty(0, dtype=torch.float64), *self._ious]))

    def compute(self) -> dict[str, float]:
        """Metrics by name: iou_mean, iou_median, share_50, share_70, score_accuracy; NaN if nothing came."""
        masks = self.masks()
        return {
            "iou_mean": masks.mean,
            "iou_median": masks.median,
            "share_50": masks.share_50,
            "share_70": masks.share_70,
            "score_accuracy": self._agreed / self._scored if self._scored else math.nan,
        }


_KIND_NAMES = {"segm": "masks", "bbox": "boxes"}
_SHAPE_KEYS = {"segm": "segmentation", "bbox": "bbox"}


def _summary(ious: torch.Tensor) -> MaskMetrics:
    values = ious.numpy()
    if not len(values):
        return MaskMetrics(0, math.nan, math.nan, math.nan, math.nan)
    shares = [float(np.mean(values >= bound)) for bound in (0.5, 0.7)]
    return MaskMetrics(len(values), float(values.mean()), float(np.median(values)), *shares)


def _by_size(values: np.ndarray) -> dict[str, float]:
    return dict(zip(SIZES, values.tolist(), strict=True))


def _dataset(ground_truth: GroundTruth) -> Mapping[str, Any]:
    dataset = ground_truth.dataset if isinstance(ground_truth, COCO) else ground_truth
    if not isinstance(dataset, Mapping) or not {"images", "annotations"} <= set(dataset):
        raise DataError("ground truth: expected a COCO instances dict with 'images' and 'annotations'")
    return dataset


def _object(index: int, annotation: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    """One annotation for COCOeval: a dict of its own, since COCOeval writes into it, and with an id from 1
    up, since COCOeval takes an object with id 0 for not found."""
    shape = _SHAPE_KEYS[kind]
    for key in ("image_id", "area", shape):
        if key not in annotation:
            raise DataError(f"ground truth: annotation {annotation.get('id', index)} has no '{key}'")
    return {
        "id": index + 1,
        "image_id": annotation["image_id"],
        "category_id": annotation.get("category_id", 1),
        "iscrowd": int(annotation.get("iscrowd", 0)),
        "area": annotation["area"],
        shape: annotation[shape],
    }


def _proposal(index: int, entry: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    """One result for COCOeval: a mask without a box, or a box without a mask, so that its size is its own."""
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
    groups: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in dataset["images"]}
    for index, entry in enumerate(entries):
        if entry["image_id"] not in groups:
            raise DataError(f"{source}: entry {index} has unknown image_id {_short(entry['image_id'])}")
        groups[entry["image_id"]].append(entry)
    return groups


def _count_found(
    image: Mapping[str, Any],
    objects: list[dict[str, Any]],
    proposals: list[dict[str, Any]],
    kind: Kind,
    hits: np.ndarray,
    total: np.ndarray,
) -> None:
    """Matches one image's proposals (best first) with COCOeval and adds to `hits` [size, threshold, rank] and
    `total` [size]. Every count's recall follows from the ranks, where `COCOeval.accumulate` would sort and
    sweep all proposals of the data set anew for each count."""
    if not objects:
        return
    # COCO's order: by category, which decides between objects that one proposal covers equally well.
    objects = sorted(objects, key=lambda entry: entry["category_id"])
    for entry in objects:
        entry["category_id"] = 1
        if kind == "segm":
            entry["segmentation"] = _to_rle(entry["segmentation"], image)
    shape = _SHAPE_KEYS[kind]
    # COCOeval's matching is plain Python: spare it the many proposals that match nothing at any threshold.
    ranks = np.zeros(0, np.int64)
    if proposals:
        crowds = [entry["iscrowd"] for entry in objects]
        overlaps = coco_mask.iou([p[shape] for p in proposals], [entry[shape] for entry in objects], crowds)
        ranks = np.flatnonzero(overlaps.max(axis=1) >= 0.5)
    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval(_coco(image, objects), _coco(image, [proposals[rank] for rank in ranks]), kind)
        run.params.useCats = 0
        run.params.maxDets = [hits.shape[2]]
        run.evaluate()
    for size, matched in enumerate(run.evalImgs):
        found = (matched["dtMatches"] > 0) & ~matched["dtIgnore"].astype(bool)
        hits[size][:, ranks] += found
        total[size] += np.count_nonzero(matched["gtIgnore"] == 0)


def _coco(image: Mapping[str, Any], annotations: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {"images": [image], "annotations": annotations, "categories": [{"id": 1}]}
    coco.createIndex()
    return coco


def _to_rle(segmentation: Any, image: Mapping[str, Any]) -> Any:
    """Compressed RLE of polygons, uncompressed or compressed RLE."""
    height, width = image["height"], image["width"]
    if isinstance(segmentation, Mapping):
        if not isinstance(segmentation["counts"], list):
            return segmentation
        return coco_mask.frPyObjects(dict(segmentation), height, width)
    return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))


def _checked_entry(where: str, entry: Any, sizes: Mapping[int, tuple[int, int]]) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise DataError(f"{where}: expected an object, got {_short(entry)}")
    image_id = entry.get("image_id")
    if type(image_id) is not int or image_id not in sizes:
        raise DataError(f"{where}: image_id {_short(image_id)} is not in the ground truth")
    if not _is_finite(entry.get("score")):
        raise DataError(f"{where}: expected a finite score, got {_short(entry.get('score'))}")
    checked: dict[str, Any] = {"image_id": image_id, "category_id": 1, "score": float(entry["score"])}
    if "segmentation" in entry:
        checked["segmentation"] = _checked_rle(where, entry["segmentation"], sizes[image_id])
    if "bbox" in entry:
        checked["bbox"] = _checked_box(where, entry["bbox"])
    if "segmentation" not in entry and "bbox" not in entry:
        raise DataError(f"{where}: expected a segmentation or a bbox, got neither")
    return checked


def _checked_rle(where: str, rle: Any, size: tuple[int, int]) -> dict[str, Any]:
    """The RLE, once its runs fill its image exactly: pycocotools' C code trusts them."""
    if not isinstance(rle, dict) or rle.get("size") != list(size):
        came = rle.get("size") if isinstance(rle, dict) else rle
        raise DataError(f"{where}: expected an RLE of its image's size {list(size)}, got {_short(came)}")
    counts = rle.get("counts")
    if not isinstance(counts, str) or not counts.isascii():
        raise DataError(f"{where}: expected compressed RLE counts, a string, got {_short(counts)}")
    try:
        runs = decode_counts(counts.encode("ascii"))
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None
    if (runs < 0).any() or runs.sum() != size[0] * size[1]:
        raise DataError(f"{where}: expected RLE runs >= 0 of {size[0] * size[1]} in all, got {int(runs.sum())}")
    return {"size": list(size), "counts": counts.encode("ascii")}


def _checked_box(where: str, box: Any) -> list[float]:
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)) or min(box[2:]) < 0:
        raise DataError(f"{where}: expected bbox [x, y, width, height], 4 finite numbers, got {_short(box)}")
    return [float(v) for v in box]


def _is_finite(value: Any) -> bool:
    # The bound keeps out whole numbers too large for a float, and products of two that would be.
    return type(value) in (int, float) and abs(value) <= 1e100


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _none_for_nan(values: Mapping[str, float]) -> dict[str, float | None]:
    return {key: None if math.isnan(value) else value for key, value in values.items()}


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f}"

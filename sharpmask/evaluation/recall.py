"""Average recall of proposals by COCO's protocol, class-agnostic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .matching import LIMIT, SIZES, Kind, Matches, match_objects
from .results import GroundTruth

CURVE_COUNTS = (1, 2, 3, 4, 5, 7, 10, 14, 20, 30, 40, 50, 70, 100, 140, 200, 300, 400, 500, 700, 1000)
"""Proposals per image at which AR is read for the area under its curve; about evenly spaced on a logarithmic axis."""
COUNTS = (10, 100, 1000)
"""Proposals per image at which AR is told."""


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
    counts: Sequence[int] = COUNTS,
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
    _check_counts(counts)
    matches = match_objects(ground_truth, results, kind=kind, limit=max(*counts, LIMIT))
    return recall_of(matches, counts)


def recall_of(matches: Matches, counts: Sequence[int] = COUNTS) -> Recall:
    """Average recall of matched proposals. Raises ValueError for `counts` below 1."""
    figures = np.stack([mean(object_scores(matches, size, counts)[matches.counted[i]]) for i, size in enumerate(SIZES)])
    curve = mean(_found(matches, "all", CURVE_COUNTS)[matches.counted[0]])
    return Recall(
        kind=matches.kind,
        ar={count: _by_size(figures[:, column]) for column, count in enumerate(counts)},
        auc=_by_size(figures[:, -1]),
        curve=list(zip(CURVE_COUNTS, curve.tolist(), strict=True)),
        most=matches.most,
    )


def object_scores(matches: Matches, size: str = "all", counts: Sequence[int] = COUNTS) -> NDArray[np.float64]:
    """What each object adds to the figures: (M, len(counts) + 1), AR at `counts`, and AUC.

    A figure of a group of objects is the mean of its column over them: AR at a number of proposals is the mean over
    objects of the share of IoU thresholds at which so many proposals find the object, and AUC is linear in AR.

    size: one of `SIZES`, whose matching counts: that of "small" sees all but small objects as ignored regions.
    Raises ValueError for `counts` below 1.
    """
    _check_counts(counts)
    curve = _found(matches, size, CURVE_COUNTS)
    axis = np.log10(CURVE_COUNTS)
    areas = ((curve[:, 1:] + curve[:, :-1]) / 2) @ np.diff(axis) / (axis[-1] - axis[0])
    return np.column_stack([_found(matches, size, counts), areas])


def _check_counts(counts: Sequence[int]) -> None:
    if not counts or min(counts) < 1:
        raise ValueError(f"counts must be whole numbers from 1 up, got {list(counts)}")


def _found(matches: Matches, size: str, counts: Sequence[int]) -> NDArray[np.float64]:
    """The share of IoU thresholds at which the object is found, [object, number of proposals]."""
    ranks = matches.ranks[SIZES.index(size)]
    return np.stack([(ranks < count).mean(axis=1) for count in counts], axis=1)


def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over the first axis; NaN over nothing."""
    return values.mean(axis=0) if len(values) else np.full(values.shape[1:], np.nan)


def _by_size(values: NDArray[np.float64]) -> dict[str, float]:
    return dict(zip(SIZES, values.tolist(), strict=True))


def _none_for_nan(values: Mapping[str, float]) -> dict[str, float | None]:
    return {key: None if math.isnan(value) else value for key, value in values.items()}

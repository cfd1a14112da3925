"""Recall of groups of objects: by size, by category, and by where their photos are from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .bootstrap import ALL, RESAMPLES, Figures, figures
from .matching import SIZES, Matches
from .recall import COUNTS
from .results import GroundTruth, instances

By = Literal["size", "category", "source"]
GROUPINGS: tuple[By, ...] = get_args(By)
UNKNOWN = "(unknown)"
"""The group of objects whose photo does not say where it is from, or whose category has no name."""


def break_down(
    matches: Matches,
    ground_truth: GroundTruth,
    by: By,
    *,
    counts: Sequence[int] = COUNTS,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Figures]:
    """The figures of each group of objects, by the group's name; the largest group comes first, sizes in their order.

    by: "size" for COCO's small, medium and large, whose figures are those of `average_recall`; "category" for the
    names of the ground truth's categories; "source" for the text `source` of its images, which a `CocoFolder` has
    shortened so that photos share it. The matching stays class-agnostic: a proposal counts for the object that it
    fits best, whatever the categories are.

    resamples, seed: as of `figures`. Raises DataError if no image says its source, ValueError for `counts` below 1.
    """
    if by == "size":
        found = figures(matches, [(size, ALL) for size in SIZES[1:]], counts=counts, resamples=resamples, seed=seed)
        return dict(zip(SIZES[1:], found, strict=True))
    groups = _members(group_names(ground_truth, by), matches)
    chosen = (("all", own) for own in groups.values())
    return dict(zip(groups, figures(matches, chosen, counts=counts, resamples=resamples, seed=seed), strict=True))


def _members(names: Sequence[str], matches: Matches) -> dict[str, NDArray[np.int64]]:
    """The numbers of the objects of each group, the largest first, by the names of the annotations' groups."""
    numbers: dict[str, int] = {}
    group = np.array([numbers.setdefault(names[place], len(numbers)) for place in matches.objects.tolist()], np.int64)
    members = np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1])
    # Without an object there is no name, but one empty part.
    return dict(sorted(zip(numbers, members, strict=False), key=lambda item: (-len(item[1]), item[0])))


def group_names(ground_truth: GroundTruth, by: By) -> list[str]:
    """The group of every annotation, by "category" or "source". Raises DataError if no image says its source."""
    dataset = instances(ground_truth)
    if by == "category":
        categories = {entry["id"]: str(entry.get("name", "")) for entry in dataset.get("categories", ())}
        return [categories.get(entry.get("category_id")) or UNKNOWN for entry in dataset["annotations"]]
    sources = {image["id"]: str(image.get("source") or "") for image in dataset["images"]}
    if not any(sources.values()):
        raise DataError("by: no image of the ground truth says its 'source', so leave out source")
    return [sources[entry["image_id"]] or UNKNOWN for entry in dataset["annotations"]]

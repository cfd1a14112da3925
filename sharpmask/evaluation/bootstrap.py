"""How far figures of recall, and differences of two, would move with other photos: the bootstrap over photos.

A resample draws as many photos as there are, with replacement, and all objects of a photo come with it: those of one
photo are not independent. Its figure is the mean over the objects drawn, not over photos. The interval holds the middle
95 % of the resamples' figures (the percentile interval of Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
chapter 13).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .matching import SIZES, Matches
from .recall import COUNTS, object_scores

RESAMPLES = 1000
LEVEL = 0.95
"""Share of the resamples that lie in the interval."""
FEWEST_PHOTOS = 10
"""With fewer photos there is no interval: resamples of so few are too much alike."""
FEWEST_OBJECTS = 20
"""A figure of fewer objects is marked."""
CHUNK = 1_000_000
"""Photos drawn at a time, which bounds the memory."""
ALL = np.array(True)
"""The group of all objects."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class Figures:
    """Average recall of a group of objects as fractions, or a difference of two such, each with its interval."""

    objects: int
    photos: int
    """Photos that have such an object."""
    ar: dict[int, float]
    """AR by number of proposals per photo; NaN for no objects."""
    auc: float
    """Area under AR, as of `Recall`."""
    ar_interval: dict[int, Interval] | None
    """95 % intervals of `ar`; None for fewer than `FEWEST_PHOTOS` photos, or if none were asked for."""
    auc_interval: Interval | None

    @property
    def few(self) -> bool:
        """Whether the figures are of too few objects or photos to rely on."""
        return self.objects < FEWEST_OBJECTS or self.photos < FEWEST_PHOTOS

    def to_json(self) -> dict[str, Any]:
        """A dict that `json.dumps` accepts: NaN becomes None, numbers of proposals become strings."""
        return {
            "objects": self.objects,
            "photos": self.photos,
            "few": self.few,
            "ar": {str(count): None if math.isnan(value) else value for count, value in self.ar.items()},
            "auc": None if math.isnan(self.auc) else self.auc,
            "ar_interval": self.ar_interval and {str(count): list(ends) for count, ends in self.ar_interval.items()},
            "auc_interval": self.auc_interval and list(self.auc_interval),
        }


@dataclass(frozen=True)
class Sums:
    """The objects of a group, summed up by photo."""

    photos: NDArray[np.int64]
    """(Q,) places of the photos that have an object of the group, among all photos that have any."""
    objects: NDArray[np.int64]
    """(Q,) number of objects of the group."""
    scores: NDArray[np.float64]
    """(Q, K) sums of their `object_scores`."""


def figures(
    matches: Matches,
    groups: Iterable[tuple[str, NDArray[np.bool_] | NDArray[np.int64]]] = (("all", ALL),),
    *,
    counts: Sequence[int] = COUNTS,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Figures]:
    """The figures of groups of objects, with their intervals.

    groups: for each, one of `SIZES` whose matching counts, and which of the M objects are in it: bool (M,) or (), or
    their numbers. Those without that size are left out. resamples: how many; 0 for no intervals. The same photos,
    `resamples` and `seed` give the same resamples, whatever the results. Raises ValueError for `counts` below 1.
    """
    photos, place = np.unique(matches.photos, return_inverse=True)
    scores: dict[str, NDArray[np.float64]] = {}
    sums = []
    for size, chosen in groups:
        if size not in scores:
            scores[size] = object_scores(matches, size, counts)
        own = _numbers(chosen, len(place))
        sums.append(_sums(place, own[matches.counted[SIZES.index(size), own]], scores[size]))
    # There may be as many groups as photos, and the resamples of each take memory.
    wide = [number for number, own in enumerate(sums) if len(own.photos) >= FEWEST_PHOTOS]
    drawn = resampled([sums[number] for number in wide], len(photos), resamples, seed)
    spread = dict(zip(wide, drawn, strict=True))
    return [_figures(own, _figure(own), spread.get(number), counts) for number, own in enumerate(sums)]


def difference(
    matches: Matches,
    other: Matches,
    *,
    counts: Sequence[int] = COUNTS,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Figures:
    """The figures of `matches` minus those of `other`, on the same objects, with intervals of the difference.

    Each resample draws the same photos for both (a paired bootstrap), so what is hard for both does not blur the
    difference. Raises DataError if the two are of other objects, ValueError for `counts` below 1.
    """
    if not np.array_equal(matches.objects, other.objects):
        raise DataError("results to compare must be matched with the same ground truth, got other objects")
    photos, place = np.unique(matches.photos, return_inverse=True)
    own = np.arange(len(place))
    sums = [_sums(place, own, object_scores(each, "all", counts)) for each in (matches, other)]
    first, second = resampled(sums, len(photos), resamples, seed)
    return _figures(sums[0], _figure(sums[0]) - _figure(sums[1]), first - second, counts)


def picks(photos: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """The photos of every resample, 0 to photos - 1, in pieces (n, photos) that do not depend on `CHUNK`."""
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK // max(1, photos))
    for start in range(0, resamples, step):
        yield rng.integers(photos, size=(min(step, resamples - start), photos))


def resampled(groups: Sequence[Sums], photos: int, resamples: int, seed: int) -> list[NDArray[np.float64]]:
    """The figures of every group in every resample, (resamples, K) each; NaN where one draws no object of the group."""
    parts: list[list[NDArray[np.float64]]] = [[np.zeros((0, group.scores.shape[1]))] for group in groups]
    for drawn in picks(photos, resamples if photos else 0, seed):
        rows = np.arange(len(drawn))[:, None] * photos
        times = np.bincount((drawn + rows).ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.float64)
        for group, part in zip(groups, parts, strict=True):
            weights = times[:, group.photos]
            with np.errstate(invalid="ignore"):
                part.append(weights @ group.scores / (weights @ group.objects)[:, None])
    return [np.concatenate(part) for part in parts]


def _numbers(chosen: NDArray[np.bool_] | NDArray[np.int64], objects: int) -> NDArray[np.int64]:
    """The numbers of the objects of a group, of so many."""
    if chosen.dtype != bool:
        return chosen.astype(np.int64)
    return np.flatnonzero(np.broadcast_to(chosen, objects))


def _sums(place: NDArray[np.int64], own: NDArray[np.int64], scores: NDArray[np.float64]) -> Sums:
    """The objects with the numbers `own`. place: (M,) of each object's photo among those that have any."""
    photos, row = np.unique(place[own], return_inverse=True)
    totals = np.zeros((len(photos), scores.shape[1]))
    np.add.at(totals, row, scores[own])
    return Sums(photos, np.bincount(row, minlength=len(photos)), totals)


def _figure(sums: Sums) -> NDArray[np.float64]:
    """The mean over the objects of a group, (K,)."""
    total = sums.objects.sum()
    return sums.scores.sum(axis=0) / total if total else np.full(sums.scores.shape[1], np.nan)


def _figures(
    sums: Sums, values: NDArray[np.float64], spread: NDArray[np.float64] | None, counts: Sequence[int]
) -> Figures:
    *ar, auc = values.tolist()
    found = Figures(int(sums.objects.sum()), len(sums.photos), dict(zip(counts, ar, strict=True)), auc, None, None)
    if spread is None or not len(spread) or len(sums.photos) < FEWEST_PHOTOS:
        return found
    outside = (1 - LEVEL) / 2
    low, high = np.nanquantile(spread, (outside, 1 - outside), axis=0).tolist()
    *ends, last = zip(low, high, strict=True)
    return replace(found, ar_interval=dict(zip(counts, ends, strict=True)), auc_interval=last)

"""Intervals: the figures of a resample are those of a data set that holds its photos."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from sharpmask.errors import DataError
from sharpmask.evaluation import SIZES, Figures, average_recall, bootstrap, difference, figures, match_objects
from sharpmask.evaluation.bootstrap import ALL

from .cases import annotation, dataset, ellipse, rle

COUNTS = (1, 3, 10)
RESAMPLES = 3
Case = tuple[dict[str, Any], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def case() -> Case:
    """Sixteen photos of one to three objects of two sizes, and proposals near some of these."""
    rng = np.random.default_rng(0)
    annotations, results = [], []
    for photo in range(1, 17):
        for number in range(rng.integers(1, 4)):
            centre, radii = rng.uniform(40, 110, 2), rng.uniform(9, 14, 2) if number % 2 else rng.uniform(25, 40, 2)
            crowd = int(rng.random() < 0.1)
            mask = ellipse(*centre, *radii)
            annotations.append(annotation(len(annotations) + 1, photo, mask, iscrowd=crowd))
            for _ in range(rng.integers(0, 4)):
                moved = ellipse(*(centre + rng.normal(0, 2, 2)), *(radii * np.exp(rng.normal(0, 0.15, 2))))
                results.append({"image_id": photo, "score": float(rng.random()), "segmentation": rle(moved)})
    return dataset(annotations, images=17), results


def drawn(case: Case, photos: list[int]) -> Case:
    """A data set of these photos, each as often as it is named."""
    new: Case = dataset([], images=len(photos)), []
    for number, photo in enumerate(photos, start=1):
        for entries, into in ((case[0]["annotations"], new[0]["annotations"]), (case[1], new[1])):
            into += [entry | {"image_id": number} for entry in entries if entry["image_id"] == photo]
    return new


def slow(case: Case) -> np.ndarray:
    """AR at `COUNTS` and AUC, [resample, size, figure], of data sets that hold the photos of a resample."""
    photos = sorted({entry["image_id"] for entry in case[0]["annotations"] if not entry["iscrowd"]})
    (picked,) = bootstrap.picks(len(photos), RESAMPLES, seed=0)
    recalls = [average_recall(*drawn(case, [photos[at] for at in row]), counts=COUNTS) for row in picked]
    return np.array(
        [[[*(each.ar[count][size] for count in COUNTS), each.auc[size]] for size in SIZES] for each in recalls]
    )


def ends(found: Figures) -> np.ndarray:
    """The intervals of AR at `COUNTS` and of AUC, [figure, end]."""
    assert found.ar_interval is not None and found.auc_interval is not None
    return np.array([*(found.ar_interval[count] for count in COUNTS), found.auc_interval])


def test_resamples_are_those_of_average_recall(case: Case) -> None:
    expected = slow(case)
    assert np.ptp(expected[:, 0], axis=0).min() > 0.005  # they differ, so there is something to compare
    sizes = SIZES[:3]  # there are no large objects
    found = figures(match_objects(*case), [(size, ALL) for size in sizes], counts=COUNTS, resamples=RESAMPLES)
    for place in range(len(sizes)):
        quantiles = np.quantile(expected[:, place], [0.025, 0.975], axis=0).T
        assert ends(found[place]) == pytest.approx(quantiles, abs=1e-9)


def test_differences_are_of_the_same_photos(case: Case) -> None:
    worse = (case[0], case[1][::2])
    mine, other = match_objects(*case), match_objects(*worse)
    found = difference(mine, other, counts=COUNTS, resamples=RESAMPLES)
    quantiles = np.quantile(slow(case)[:, 0] - slow(worse)[:, 0], [0.025, 0.975], axis=0).T
    assert ends(found) == pytest.approx(quantiles, abs=1e-9)
    own = average_recall(*case).ar[10]["all"] - average_recall(*worse).ar[10]["all"]
    assert found.ar[10] == pytest.approx(own) and own > 0.01
    same = difference(mine, mine)
    assert same.ar == {10: 0, 100: 0, 1000: 0} and same.auc_interval == (0, 0)


def test_objects_count_and_not_photos() -> None:
    mask = ellipse(60, 60, 30, 30)
    found, missed = [annotation(key, 1, mask) for key in range(1, 4)], annotation(9, 2, mask)
    truth = dataset([*found, missed], images=2)
    results = [{"image_id": 1, "score": 1.0, "segmentation": rle(mask)}] * 3
    (both,) = figures(match_objects(truth, results))
    assert (both.objects, both.photos, both.ar[10]) == (4, 2, 0.75)
    # With so few photos, an interval would promise too much.
    assert both.few and both.ar_interval is None and both.to_json()["auc_interval"] is None


def test_the_same_whatever_the_memory(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(bootstrap.picks(7, 50, seed=3)))
    monkeypatch.setattr(bootstrap, "CHUNK", 20)
    pieces = list(bootstrap.picks(7, 50, seed=3))
    assert len(pieces) == 25 and np.array_equal(np.concatenate(pieces), whole)
    matches = match_objects(*case)
    first, again = (figures(matches, resamples=30)[0] for _ in range(2))
    assert first == again != figures(matches, resamples=30, seed=1)[0]
    assert first.photos == 16 and not first.few
    assert figures(matches, resamples=0)[0].ar_interval is None


def test_the_interval_is_as_wide_as_the_formula() -> None:
    """Of photos with one object each, found or not, the interval is that of a share: +- 1.96 sqrt(p (1 - p) / n)."""
    mask = ellipse(60, 60, 30, 30)
    truth = dataset([annotation(key, key, mask) for key in range(1, 201)], images=200)
    results = [{"image_id": key, "score": 1.0, "segmentation": rle(mask)} for key in range(1, 81)]
    (found,) = figures(match_objects(truth, results))
    half = 1.96 * math.sqrt(0.4 * 0.6 / 200)
    assert found.ar_interval is not None
    assert found.ar_interval[10] == pytest.approx((0.4 - half, 0.4 + half), abs=0.01)


def test_nothing_and_other_objects() -> None:
    nothing = match_objects(dataset([]), [])
    (found,) = figures(nothing)
    assert found.objects == found.photos == 0 and math.isnan(found.auc)
    assert json.loads(json.dumps(found.to_json()))["ar"]["10"] is None
    other = match_objects(dataset([annotation(1, 1, ellipse(60, 60, 30, 30))]), [])
    with pytest.raises(DataError, match="same ground truth"):
        difference(nothing, other)
    with pytest.raises(ValueError, match="counts"):
        figures(other, counts=())

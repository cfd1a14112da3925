"""Which windows are refined: by score, by the scale's prior, and not all of one place."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sharpmask import ProposalGenerator, SearchConfig, SharpMask
from sharpmask.errors import DataError
from sharpmask.search.choosing import best_windows, better_neighbours
from sharpmask_kernels import topk_windows

PHOTO = np.random.default_rng(0).integers(0, 256, (90, 110, 3), dtype=np.uint8)


def maps(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 1, *size, generator=generator) for size in sizes]


def test_without_prior_and_spread_windows_are_those_of_the_best_scores() -> None:
    scores = maps((4, 5), (7, 3))
    for found, wanted in zip(best_windows(scores, 30, priors=[1.0, 1.0]), topk_windows(scores, 30), strict=True):
        assert torch.equal(found, wanted)


def test_better_neighbours_are_counted() -> None:
    score = torch.tensor([[3.0, 2.0, 1.0], [3.0, 0.0, math.nan], [-1.0, -2.0, -math.inf]])[None, None]
    assert better_neighbours(score)[0, 0].tolist() == [[0, 2, 1], [0, 4, 0], [2, 3, 2]]


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 1)])
def test_better_neighbours_of_narrow_maps(size: tuple[int, int]) -> None:
    (score,) = maps(size)
    line = [-math.inf, *score.flatten().tolist(), -math.inf]
    wanted = [(line[i - 1] > line[i]) + (line[i + 1] > line[i]) for i in range(1, len(line) - 1)]
    assert better_neighbours(score).flatten().tolist() == wanted


@pytest.mark.parametrize("spread", [0.0, 0.7])
@pytest.mark.parametrize("priors", [[1.0, 1.0], [1.0, 0.25]])
def test_windows_are_chosen_by_what_they_count(priors: list[float], spread: float) -> None:
    scores = maps((6, 5), (4, 9))
    scores[1][0, 0, 2, 3] = math.nan
    worth = {}
    for scale, score in enumerate(scores):
        padded = torch.nn.functional.pad(score[0, 0], (1, 1, 1, 1), value=-math.inf)
        for row, col in np.ndindex(*score.shape[2:]):
            own = score[0, 0, row, col]
            better = int((padded[row : row + 3, col : col + 3] > own).sum())
            worth[scale, row, col] = float(own.double().sigmoid()) * priors[scale] * math.exp(-spread * better)
    wanted = sorted((key for key in worth if not math.isnan(worth[key])), key=lambda key: -worth[key])
    found = best_windows(scores, 66, priors=priors, spread=spread)
    places = list(zip(found.scale.tolist(), found.row.tolist(), found.col.tolist(), strict=True))
    assert places[:-1] == wanted and places[-1] == (1, 2, 3)
    assert found.score[-1] == -math.inf and not found.image.any()
    for (scale, row, col), score in zip(places[:-1], found.score.tolist(), strict=False):
        assert score == scores[scale][0, 0, row, col]


def test_a_window_counts_the_same_whatever_other_scales_there_are() -> None:
    # A search chooses after each scale, and only reads on of the former scales what it has chosen of these.
    few, many = maps((6, 5)), maps((6, 5), (9, 9), (12, 3))
    early = best_windows(few, 12, priors=[1.0], spread=0.5)
    late = best_windows(many, 12, priors=[1.0, 0.8, 0.6], spread=0.5)
    first = late.select(late.scale == 0)
    chosen = set(zip(early.row.tolist(), early.col.tolist(), strict=True))
    assert len(first.score) > 0 and set(zip(first.row.tolist(), first.col.tolist(), strict=True)) <= chosen


def test_spread_lowers_no_scores(tiny_sharpmask: SharpMask) -> None:
    def found(**settings: Any) -> dict[bytes, float]:
        proposals = ProposalGenerator(tiny_sharpmask, 40, search=replace(tiny_sharpmask.search, **settings)).generate(
            PHOTO
        )
        return dict(zip((rle["counts"] for rle in proposals.rles), proposals.scores.tolist(), strict=True))

    plain, spread = found(), found(spread=2.0)
    both = plain.keys() & spread.keys()
    assert both and plain.keys() != spread.keys()
    assert all(spread[mask] == plain[mask] for mask in both)


@pytest.mark.parametrize("refine", [True, False])
def test_the_best_of_more_candidates_are_returned(tiny_sharpmask: SharpMask, refine: bool) -> None:
    search = replace(tiny_sharpmask.search, stability=2.0, mask_nms=0.5)

    def found(top_n: int, candidates: int) -> list[tuple[bytes, float]]:
        settings = replace(search, candidates=candidates)
        proposals = ProposalGenerator(tiny_sharpmask, top_n, search=settings, refine=refine).generate(PHOTO)
        assert np.shape(proposals.windows) == (len(proposals), 4) and np.shape(proposals.stability) == (len(proposals),)
        return [(rle["counts"], score) for rle, score in zip(proposals.rles, proposals.scores.tolist(), strict=True)]

    many = found(60, 0)
    assert found(10, 60) == many[:10] != found(10, 0)
    assert found(60, 10) == many, "candidates are at least so many"


def test_a_scale_may_stand_twice_in_older_checkpoints() -> None:
    assert SearchConfig.stored({"scales": [1, 0.5, 1.0]}, "search").scales == (1.0, 0.5)
    for scales in ([], [[1.0], [1.0]], [1.0, "1"], list(range(1, 100_001))):
        with pytest.raises(DataError, match="search: scales must"):
            SearchConfig.stored({"scales": scales}, "search")


def test_stability_was_a_switch_in_older_checkpoints() -> None:
    assert SearchConfig.stored({"stability": True}, "search") == SearchConfig(stability=1.0)
    assert SearchConfig.stored({"stability": False}, "search") == SearchConfig()
    with pytest.raises(DataError, match="search: stability must be a number from 0 to 4, got 'yes'"):
        SearchConfig.stored({"stability": "yes"}, "search")

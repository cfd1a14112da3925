"""The learned ranking: what it sees of a mask, what it makes of it, and how it is fitted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sharpmask import ProposalGenerator, SharpMask, load_model
from sharpmask.cli import main
from sharpmask.data.coco import CocoFolder
from sharpmask.errors import DataError
from sharpmask.models import SearchConfig
from sharpmask.models.config import RANKED_BY
from sharpmask.search.ranking import Looks, statistics
from sharpmask.training import ranking
from sharpmask.training.ranking import fit_ranking, logistic, rankable

PHOTO = np.random.default_rng(0).integers(0, 256, (90, 110, 3), dtype=np.uint8)


def weights(bias: float = 0.0, **named: float) -> tuple[float, ...]:
    return (bias, *(named.get(name, 0.0) for name in RANKED_BY))


def seen(logits: torch.Tensor) -> dict[str, float]:
    looks = Looks(*torch.tensor([[0.5], [0.25], [2.0], [0.125]]))
    (row,) = statistics(logits[None], looks, 0.5).tolist()
    return dict(zip(RANKED_BY, row, strict=True))


def test_statistics_of_a_rectangle() -> None:
    logits = torch.full((48, 48), -9.0)
    logits[0:24, 12:24] = 2.0  # of the 16 x 16 pixels that are looked at: 8 rows from the top, columns 4 to 7
    found = seen(logits)
    assert (found["score"], found["stability"], found["octave"], found["outside"]) == (0.5, 0.25, 2.0, 0.125)
    inside, beside = 1 / (1 + np.exp(-2.0)), 1 / (1 + np.exp(9.0))
    expected = {
        "area": 32 / 256,
        "certainty": inside,
        "blur": (32 * inside * (1 - inside) + 224 * beside * (1 - beside)) / 256 / (32 / 256) ** 0.5,
        "outline": (4 + 8 + 8) / 32**0.5,
        "border": 4 / 64,
        "offset": np.hypot(4 / 15, 2 / 15),
        "height": 0.5,
        "width": 0.25,
        "middle": 9 / 36,  # of rows and columns 5 to 10
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize("value", [-9.0, float("nan")])
def test_an_empty_mask_has_finite_statistics(value: float) -> None:
    assert all(map(np.isfinite, seen(torch.full((48, 48), value)).values()))


def test_a_ranking_by_the_score_alone_is_the_plain_search(tiny_sharpmask: SharpMask) -> None:
    search = replace(tiny_sharpmask.search, stability=0.0, scale_prior=0.0)
    plain = ProposalGenerator(tiny_sharpmask, 30, search=search).generate(PHOTO)
    same = replace(search, ranking=weights(score=1.0), stability=2.0)
    learned = ProposalGenerator(tiny_sharpmask, 30, search=same).generate(PHOTO)
    assert learned.rles == plain.rles
    np.testing.assert_allclose(learned.scores, plain.scores, rtol=1e-5)


def test_a_ranking_orders_masks_by_what_it_weighs(tiny_sharpmask: SharpMask) -> None:
    search = replace(tiny_sharpmask.search, scales=(1.0,), ranking=weights(-1.0, area=5.0))
    found = ProposalGenerator(tiny_sharpmask, 30, search=search).generate(PHOTO)
    values, rles = ProposalGenerator(tiny_sharpmask, 30, search=search).judge(PHOTO)
    area = values[:, RANKED_BY.index("area")]
    order = area.argsort(descending=True, stable=True).tolist()
    assert found.rles == [rles[i] for i in order if area[i] > 0]
    expected = (5 * area[order][: len(found)] - 1).sigmoid()
    np.testing.assert_allclose(found.scores, expected, rtol=1e-5)


def test_the_regression_finds_the_weights_that_made_its_targets() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(500, 3, generator=generator).double() * torch.tensor([1.0, 10.0, 0.1]) + 2
    targets = (values @ torch.tensor([1.0, -0.1, 5.0], dtype=torch.float64) - 11).sigmoid()
    assert logistic(values, targets) == pytest.approx((-11, 1, -0.1, 5), rel=0.01)


def test_pack_fits_a_ranking(
    tiny_checkpoint: Path,
    synth: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "ranked.safetensors"
    monkeypatch.setattr(ranking, "FEWEST_PHOTOS", 1)
    monkeypatch.setattr(ranking, "FEWEST_MASKS", 10**6)
    assert main(["pack", str(tiny_checkpoint), str(out), "--scales", "0.5", "--rank-on", str(synth)]) == 2
    assert "must have photos with 1000000 masks to fit a ranking, got" in capsys.readouterr().err
    monkeypatch.setattr(ranking, "FEWEST_MASKS", 1)
    assert main(["pack", str(tiny_checkpoint), str(out), "--scales", "0.5", "--rank-on", str(synth)]) == 0
    before, folder = load_model(tiny_checkpoint), CocoFolder(synth)
    generator = ProposalGenerator(before, 1000, search=replace(before.search, scales=(0.5,)))
    count = len(folder.photos)
    assert f"the ranking is fitted to {count} of {count} photos" in capsys.readouterr().out
    assert load_model(out).search.ranking == fit_ranking(generator, folder, rankable(folder))


def test_partial_photos_give_no_ranking(synth: Path) -> None:
    with pytest.raises(
        DataError, match="must hold 20 completely annotated photos with objects to fit a ranking, got 0 among"
    ):
        rankable(CocoFolder(synth, partial=True))


def test_a_ranking_has_all_its_weights() -> None:
    with pytest.raises(DataError, match="ranking must be empty or 14 weights, got 2"):
        SearchConfig(ranking=(0.0, 1.0))

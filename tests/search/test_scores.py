"""Stability, scale prior and soft suppression change scores; checkpoints keep these settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sharpmask import ProposalGenerator, SharpMask, load_model
from sharpmask.cli import main
from sharpmask.search.looking import stability


def test_stability_is_the_sharp_share_of_a_mask() -> None:
    sharp = torch.full((4, 4), -9.0)
    sharp[:2] = 3.0
    blurred = torch.full((4, 4), -1.0)
    blurred[0] = 0.5
    empty = torch.full((4, 4), -9.0)
    assert stability(torch.stack([sharp, blurred, empty])).tolist() == [1.0, 0.25, 0.0]
    assert stability(torch.zeros(0, 4, 4)).shape == (0,)


def test_stability_weighs_scores(tiny_sharpmask: SharpMask) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (90, 110, 3), dtype=np.uint8)
    plain = ProposalGenerator(tiny_sharpmask, 30).generate(photo)
    search = replace(tiny_sharpmask.search, stability=1.0)
    weighed = ProposalGenerator(tiny_sharpmask, 30, search=search).generate(photo)
    before = dict(zip((rle["counts"] for rle in plain.rles), plain.scores.tolist(), strict=True))
    after = dict(zip((rle["counts"] for rle in weighed.rles), weighed.scores.tolist(), strict=True))
    assert before.keys() == after.keys()
    assert all(after[mask] <= before[mask] for mask in before) and after != before
    assert (np.diff(weighed.scores) <= 0).all()


def test_a_scale_prior_weighs_scores_by_their_scale(tiny_sharpmask: SharpMask) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (90, 110, 3), dtype=np.uint8)
    search = replace(tiny_sharpmask.search, scales=(0.5, 2.0))
    plain = ProposalGenerator(tiny_sharpmask, 500, search=search).generate(photo)
    weighed = ProposalGenerator(tiny_sharpmask, 500, search=replace(search, scale_prior=0.5)).generate(photo)
    before = dict(zip((rle["counts"] for rle in plain.rles), plain.scores.tolist(), strict=True))
    ratios = {round(s / before[r["counts"]], 5) for r, s in zip(weighed.rles, weighed.scores.tolist(), strict=True)}
    assert ratios == {1.0, 0.5}, "(2 / 0.5) ** -0.5 at the finer scale"
    assert (np.diff(weighed.scores) <= 0).all()


def test_soft_suppression_keeps_what_hard_suppression_drops(tiny_sharpmask: SharpMask) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (90, 110, 3), dtype=np.uint8)
    hard = replace(tiny_sharpmask.search, mask_nms=0.3)
    few = ProposalGenerator(tiny_sharpmask, 30, search=hard).generate(photo)
    many = ProposalGenerator(tiny_sharpmask, 30, search=replace(hard, soft_nms=True)).generate(photo)
    assert len(few) < len(many)
    assert few.rles[0] == many.rles[0]
    assert (np.diff(many.scores) <= 0).all()


def test_pack_halves_a_checkpoint_and_keeps_settings(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "packed.safetensors"
    settings = [
        "--scales",
        "0.5",
        "1",
        "--mask-nms",
        "0.6",
        "--soft-nms",
        "True",
        "--stability",
        "2",
        "--scale-prior",
        "0.3",
    ]
    assert main(["pack", str(tiny_checkpoint), str(out), *settings]) == 0
    assert f"{out}" in capsys.readouterr().out.replace("\n", "")
    before, packed = load_model(tiny_checkpoint), load_model(out)
    wanted = {"scales": (0.5, 1.0), "mask_nms": 0.6, "soft_nms": True, "stability": 2.0, "scale_prior": 0.3}
    assert packed.search == replace(before.search, **wanted)
    assert packed.config == before.config
    assert all(t.dtype == torch.float16 for t in load_file(out).values())
    for name, tensor in before.state_dict().items():
        torch.testing.assert_close(packed.state_dict()[name], tensor.half().float(), rtol=0, atol=0)

"""The commands on a GPU: they find and learn there what they find and learn on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from sharpmask.cli import main

pytestmark = pytest.mark.gpu

DEVICES = ("cpu", "cuda")
MODEL = [
    *("--trunk", "efficientnet_lite0", "--window", "48", "--features", "8", "--code", "16", "--mask-side", "12"),
    *("--score-hidden", "16", "--mask-channels", "4", "4", "4", "4", "4"),
    *("--skip-channels", "4", "4", "4", "4", "--skip-hidden", "8"),
]
SHORT = ["--steps", "4", "--batch-size", "2", "--log-every", "1", "--save-every", "4", "--workers", "2"]


def run(*arguments: object) -> None:
    assert main([str(a) for a in arguments]) == 0


def test_propose(synth: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    found: dict[str, list[dict[str, Any]]] = {}
    for device in DEVICES:
        options = ("--checkpoint", tiny_checkpoint, "--top-n", 20, "--device", device)
        run("propose", synth / "images" / "000001.png", "--out", tmp_path / device, *options)
        found[device] = json.loads((tmp_path / device / "proposals.json").read_text())
    scores = [sorted(entry["score"] for entry in found[device]) for device in DEVICES]
    np.testing.assert_allclose(*scores, atol=1e-2)


def test_eval(synth: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    found = []
    for device in DEVICES:
        options = ("--checkpoint", tiny_checkpoint, "--top-n", 50, "--patches", 3, "--device", device)
        run("eval", "--dataset", synth, "--out", tmp_path / device, *options)
        report = json.loads((tmp_path / device / "recall.json").read_text())
        found.append(report["patches"]["refined_iou_mean"])
    assert found[0] == pytest.approx(found[1], abs=1e-2)


@pytest.mark.parametrize("sampling", ["patches", "dense"])
def test_train(synth: Path, tmp_path: Path, sampling: str) -> None:
    """Both stages, with workers and pinned memory."""
    for device in DEVICES:
        common = ("--dataset", synth, *SHORT, "--sampling", sampling, "--device", device)
        coarse = tmp_path / device / "coarse"
        run("train", "deepmask", "--out", coarse, *MODEL, *common)
        start = ("--from", coarse / "checkpoint.safetensors")
        run("train", "sharpmask", "--out", tmp_path / device / "fine", *start, *common)
    for stage in ("coarse", "fine"):
        ours, theirs = (load_file(tmp_path / device / stage / "checkpoint.safetensors") for device in DEVICES)
        assert ours.keys() == theirs.keys()
        for name, x in ours.items():
            assert x.isfinite().all() if x.is_floating_point() else True, name
            difference = (x.double() - theirs[name].double()).norm()
            assert difference <= 0.05 * max(1.0, float(x.double().norm())), name

"""The recipes in configs/: each is what it says, and fits the limits of its model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sharpmask.cli.train import parse
from sharpmask.models import from_config
from sharpmask.plain import read_yaml
from sharpmask.training import TrainConfig, stage_defaults

CONFIGS = Path(__file__).parents[1] / "configs"
LARGEST = {"small": 9e6, "base": 16e6}
"""Bytes of a model that is shipped."""


def read(name: str) -> TrainConfig:
    path = CONFIGS / f"{name}.yaml"
    stage = str(read_yaml(path).get("stage") or ("sharpmask" if name.endswith("_refine") else "deepmask"))
    return parse(stage, ["--config", str(path), "--dataset", "photos", "--out", "run"])


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_every_recipe_is_read(name: str) -> None:
    assert read(name).model.architecture == ("deepmask" if name == "paper_coco_resnet50" else "sharpmask")


@pytest.mark.parametrize("name", LARGEST)
def test_a_model_of_the_family_is_small_enough_to_be_shipped(name: str) -> None:
    with torch.device("meta"):
        model = from_config(read(name).model)
    assert 2 * sum(p.numel() for p in model.parameters()) < LARGEST[name] - 50_000, "16-bit weights and a header"


def test_small_is_the_default_of_its_command() -> None:
    small = read("small")
    assert small.model == stage_defaults("joint")["model"] and small.trunk_weights == "imagenet"

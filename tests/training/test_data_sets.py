"""A run on several data sets, on photos that are held out, and on partially annotated ones."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sharpmask.cli.checks import check_inputs
from sharpmask.cli.train import parse
from sharpmask.data.coco import CocoFolder, Photo
from sharpmask.data.mixture import Mixture
from sharpmask.data.packed import Packed
from sharpmask.data.tile_config import TileConfig
from sharpmask.errors import DataError
from sharpmask.evaluation import Validator
from sharpmask.models import DeepMask
from sharpmask.training import TrainConfig, stage_defaults
from sharpmask.training.log import LOG
from sharpmask.training.loop import Run, check_left

from ..data.folders import background

QUIET = Console(quiet=True)


def settings(model: DeepMask, out: Path, *named: Path | str, **changes: Any) -> TrainConfig:
    short: dict[str, Any] = {
        "model": model.config,
        "trunk_weights": None,
        "frozen_stages": 0,
        "tiles": TileConfig(side=80, tiles=2, pasted=1),
        "steps": 2,
        "workers": 0,
        "threads": 1,
        "validation_samples": 4,
    }
    return TrainConfig(dataset=tuple(map(Path, named)), out=out, **(stage_defaults("joint") | short | changes))


def test_held_out_photos_are_validated_on_and_not_trained_on(
    tiny_sharpmask: DeepMask, synth: Path, tmp_path: Path
) -> None:
    names = [photo.path.name for photo in CocoFolder(synth).photos]
    config = settings(tiny_sharpmask, tmp_path / "run", synth, f"{synth}:2", held_out=tuple(names[:2]))
    run = Run(config, 0, QUIET)
    assert {photo.path.name for photo in run.batches.photos} == set(names[2:])  # type: ignore[attr-defined]
    assert run.data.weights == (1, 2)
    run.loop()
    with open(config.out / LOG, newline="") as file:
        (row,) = csv.DictReader(file)
    held = Mixture([CocoFolder(synth).split(names[:2])[1]] * 2)
    assert run.validator is not None
    expected = Validator(held, tiny_sharpmask.config, samples=4).masks.batch(range(4))["target"]
    assert (run.validator.masks.batch(range(4))["target"] == expected).all()
    assert float(row["score_accuracy"]) >= 0
    with pytest.raises(DataError, match=r"held_out must be file names of photos .*, without folders, got 'x\.png'"):
        Run(replace(config, out=tmp_path / "other", held_out=("x.png",)), 0, QUIET)


def test_holding_all_photos_out_is_told(tiny_sharpmask: DeepMask, synth: Path, tmp_path: Path) -> None:
    names = tuple(photo.path.name for photo in CocoFolder(synth).photos)
    config = settings(tiny_sharpmask, tmp_path / "run", synth, held_out=names)
    told = r"held_out: all photos of .*instances\.json are held out \(6 of 6\), so none is left .* \(--validation\)"
    with pytest.raises(DataError, match=told):
        Run(config, 0, QUIET)
    whole, empty = CocoFolder(synth), CocoFolder(background(tmp_path / "b", 2, 90))
    with pytest.raises(DataError, match=r"held_out: all photos of .*/b/instances\.json are held out \(2 of 2\)"):
        check_left([whole.split(()), empty.split(["b1.png", "b2.png"])])
    with pytest.raises(DataError, match=r"all photos with objects of .* are held out \(6 of 7\)"):
        mixed = CocoFolder(synth)
        mixed.photos = Packed.joined(Photo, [whole.photos, empty.photos[:1]])
        check_left([mixed.split(names)])
    check_left([whole.split(names[:1]), empty.split(["b1.png"])])


def test_a_run_on_objects_and_background(tiny_sharpmask: DeepMask, synth: Path, tmp_path: Path) -> None:
    plain = background(tmp_path / "b", 2, 90)
    for stage in ({}, {"sampling": "patches", "batch_size": 4, "score_share": 1.0}):
        out = tmp_path / str(len(stage))
        config = settings(tiny_sharpmask, out, synth, f"{plain}:2", held_out=("b1.png", "000001.png"), **stage)
        Run(config, 0, QUIET).loop()
        assert (out / LOG).is_file()


def test_on_partial_photos_alone_no_score_is_measured(tiny_sharpmask: DeepMask, synth: Path, tmp_path: Path) -> None:
    tiles = TileConfig(side=80, tiles=2, pasted=1, part_negatives=0.5)
    config = settings(tiny_sharpmask, tmp_path / "run", synth, partial=True, tiles=tiles)
    run = Run(config, 0, QUIET)
    run.loop()
    found = Validator(run.data, tiny_sharpmask.config, samples=4)(tiny_sharpmask)
    assert "refined_iou_mean" in found and "score_accuracy" not in found
    with pytest.raises(DataError, match="must hold a completely annotated photo, since others give no negatives"):
        Run(replace(config, out=tmp_path / "other", tiles=replace(tiles, part_negatives=0)), 0, QUIET)


def test_the_command_line_and_yaml_name_data_sets_alike(tmp_path: Path) -> None:
    flags = ["--out", "o", "--dataset", "a:1", "b:0.3", "--annotations", "a.json", "b.json", "--partial"]
    config = parse("joint", flags)
    assert [(d.folder, d.annotations, d.weight) for d in config.data_sets()] == [
        (Path("a"), Path("a.json"), 1),
        (Path("b"), Path("b.json"), 0.3),
    ]
    assert config.partial
    with pytest.raises(DataError, match=r"annotations: no file a\.json"):
        check_inputs(config)
    nowhere = TrainConfig(dataset=(tmp_path, tmp_path / "b:2"), out=tmp_path)
    with pytest.raises(DataError, match=r"dataset: .*/b: no such folder"):
        check_inputs(nowhere)
    (tmp_path / "b:2").mkdir()
    with pytest.raises(DataError, match=r"dataset: .*/b: no such folder; for the folder .*/b:2, give .*/b:2:1"):
        nowhere.data_sets()
    for name, text in (("list", "[a:1, b:0.3]\nannotations: [a.json, b.json]"), ("one", "c")):
        (tmp_path / f"{name}.yaml").write_text(f"dataset: {text}\nout: o\n")
    assert parse("joint", ["--config", str(tmp_path / "list.yaml")]).data_sets() == config.data_sets()
    alone = parse("joint", ["--config", str(tmp_path / "one.yaml")])
    assert [(d.folder, d.annotations, d.weight) for d in alone.data_sets()] == [(Path("c"), None, 1)]
    (tmp_path / "null.yaml").write_text("dataset: c\nannotations: null\nout: o\n")
    assert parse("joint", ["--config", str(tmp_path / "null.yaml")]).annotations == ()
    with pytest.raises(DataError, match="dataset must have 1 to 1000 entries, got 0"):
        TrainConfig(dataset=(), out=tmp_path)

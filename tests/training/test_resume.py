"""Going on with a run: what must be the same, what may change, and real ends of the process."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sharpmask.data.tile_config import TileConfig
from sharpmask.errors import DataError
from sharpmask.files import LOCK, output_folder
from sharpmask.models import DeepMask
from sharpmask.models.trunk import build_trunk
from sharpmask.plain import to_plain
from sharpmask.training import TrainConfig, stage_defaults, train
from sharpmask.training.loop import CHECKPOINT, Run
from sharpmask.training.resume import STATE

QUIET = Console(quiet=True)
Factory = Callable[..., TrainConfig]


def make_settings(model: DeepMask, dataset: Path, out: Path, **changes: Any) -> TrainConfig:
    short: dict[str, Any] = {
        "model": model.config,
        "trunk_weights": None,
        "frozen_stages": 0,
        "tiles": TileConfig(side=80, tiles=1, pasted=1),
        "steps": 2,
        "save_every": 1,
        "workers": 0,
        "threads": 1,
    }
    return TrainConfig(dataset=(dataset,), out=out, **(stage_defaults("joint") | short | changes))


@pytest.fixture
def settings(tiny_sharpmask: DeepMask, synth: Path, tmp_path: Path) -> Factory:
    return lambda name, **changes: make_settings(tiny_sharpmask, synth, tmp_path / name, **changes)


@pytest.fixture(scope="module")
def template(tiny_sharpmask: DeepMask, synth: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A run of two steps."""
    config = make_settings(tiny_sharpmask, synth, tmp_path_factory.mktemp("template") / "run", clip=1.0)
    train(config, QUIET)
    return config


@pytest.fixture
def started(template: TrainConfig, tmp_path: Path) -> TrainConfig:
    """A copy of a run of two steps."""
    return replace(template, out=Path(shutil.copytree(template.out, tmp_path / "run")))


def step_of(folder: Path) -> int:
    with safe_open(folder / STATE, "pt") as file:
        return int(file.metadata()["step"])


def refused(config: TrainConfig, message: str) -> None:
    before = (config.out / STATE).read_bytes()
    with pytest.raises(DataError, match=message) as error:
        train(replace(config, resume=True), QUIET)
    assert "\n" not in str(error.value)
    assert (config.out / STATE).read_bytes() == before


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("lr", 0.01, "lr 0.001 -> 0.01"),
        ("seed", 2, "seed 1 -> 2"),
        ("optimizer", "sgd", "optimizer 'adamw' -> 'sgd'"),
        ("ema", 0.0, "ema 0.998 -> 0.0"),
        ("weight_decay", 0.1, "weight_decay 0.05 -> 0.1"),
        ("trained", "all", "trained 'stage' -> 'all'"),
        ("frozen_stages", 1, "frozen_stages 0 -> 1"),
        ("tiles", TileConfig(side=96, tiles=1, pasted=1), "tiles.side 80 -> 96"),
    ],
)
def test_other_settings_are_refused_or_asked_for(started: TrainConfig, name: str, value: Any, shown: str) -> None:
    other = replace(started, steps=3, **{name: value})
    refused(other, f"had other settings: {shown}; give them as they were .*--change {shown.split()[0]}$")
    train(replace(other, resume=True, change=(name,)), QUIET)
    assert step_of(started.out) == 3


def test_all_differences_are_listed_at_once(started: TrainConfig) -> None:
    other = replace(started, lr=0.01, seed=7, change=("seed",), resume=True)
    refused(replace(other, change=()), r"lr 0\.001 -> 0\.01, seed 1 -> 7; .*: --change lr seed$")
    refused(other, r"had other settings: lr 0\.001 -> 0\.01; .*: --change lr$")
    refused(replace(other, change=("nothing",)), "got 'nothing'; known are accumulate, batch_size, categories, clip, ")
    refused(replace(other, change=("lrr",)), "change must name settings that a run keeps, got 'lrr'; did you mean lr?")
    with pytest.raises(DataError, match="change is for a run that is resumed, got lr without resume"):
        replace(started, change=("lr",))


def test_another_model_is_never_gone_on_with(started: TrainConfig) -> None:
    model = replace(started.model, code=8)
    refused(
        replace(started, model=model),
        r"cannot go on with another model: model\.code \d+ -> 8; start another run --from",
    )


def test_processes_that_cannot_share_a_step_are_refused(started: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sharpmask.training.resume.world_size", lambda: 2)
    refused(started, "takes 1 batch, which 2 processes cannot share evenly; .*--change processes$")


def test_larger_steps_are_another_run(started: TrainConfig) -> None:
    refused(replace(started, accumulate=3), "accumulate 1 -> 3; .*--change accumulate$")


def test_other_annotations_are_another_data_set(started: TrainConfig, synth: Path, tmp_path: Path) -> None:
    text = (synth / "instances.json").read_text()
    same, other = tmp_path / "same.json", tmp_path / "other.json"
    same.write_text(text)
    other.write_text(text + " ")
    train(replace(started, annotations=(same,), steps=3, resume=True), QUIET)
    refused(
        replace(started, annotations=(other,), steps=4),
        r"dataset \(by a hash of the annotations\) '[0-9a-f]{16}' -> '[0-9a-f]{16}'; .*--change dataset$",
    )
    refused(replace(started, validation=synth, steps=4, validation_samples=1), "validation_samples 512 -> 1")


def test_what_changes_no_step_may_differ(started: TrainConfig) -> None:
    free = {"steps": 3, "log_every": 1, "save_every": 2, "workers": 1, "threads": 2, "device": "cpu:0"}
    train(replace(started, resume=True, **free), QUIET)
    assert step_of(started.out) == 3
    refused(replace(started, steps=1), "steps must be at least 3, the steps of the run, got 1")


def test_auto_starts_a_run_or_goes_on_with_it(settings: Factory) -> None:
    config = settings("auto", resume="auto")
    train(config, QUIET)
    assert step_of(config.out) == 2
    train(replace(config, steps=3), QUIET)
    assert step_of(config.out) == 3
    train(replace(config, steps=3), QUIET)  # There is nothing left to do.
    with pytest.raises(DataError, match="had other settings: seed"):
        train(replace(config, seed=3), QUIET)
    whole = settings("whole", steps=2)
    train(whole, QUIET)
    assert yaml.safe_load((whole.out / "config.yaml").read_text())["resume"] is False


def test_the_weights_that_a_run_began_with_may_be_gone(settings: Factory, tmp_path: Path) -> None:
    weights = tmp_path / "trunk.safetensors"
    save_file(build_trunk("efficientnet_lite0").state_dict(), weights)
    config = settings("begun", trunk_weights=str(weights))
    train(config, QUIET)
    weights.unlink()
    train(replace(config, steps=3, resume=True), QUIET)
    assert step_of(config.out) == 3


def test_a_state_of_the_time_before_score_target(started: TrainConfig) -> None:
    with safe_open(started.out / STATE, "pt") as file:
        metadata = dict(file.metadata())
    record = json.loads(metadata["record"])
    assert record.pop("score_target") == "soft"
    for old in (False, True):
        metadata["record"] = json.dumps(record | {"soft_scores": old})
        save_file(load_file(started.out / STATE), started.out / STATE, metadata)
        resumed = replace(started, steps=3, resume=True)
        if old:
            train(resumed, QUIET)
        else:
            refused(resumed, "score_target 'hard' -> 'soft'")


def test_a_state_without_a_record_is_taken_with_a_note(started: TrainConfig) -> None:
    path = started.out / STATE
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    del metadata["record"]
    save_file(load_file(path), path, metadata)
    text = io.StringIO()
    train(replace(started, steps=3, resume=True), Console(file=text))
    assert "an older version wrote it without a record of the settings" in text.getvalue()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("average.0", lambda t: t.flatten()[:1], r"average\.0 must be of shape"),
        ("optimizer.0.exp_avg", lambda t: t.flatten()[:1], r"optimizer\.0\.exp_avg must be of shape"),
        ("model.head.bias", lambda t: t * float("nan"), "tensor head.bias must be finite"),
        ("model.head.bias", lambda t: t[:0], r"head\.bias must be \(1,\), got \(0,\)"),
    ],
)
def test_tensors_of_a_state_that_do_not_fit(started: TrainConfig, name: str, change: Any, message: str) -> None:
    path = started.out / STATE
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    save_file(tensors | {name: change(tensors[name]).clone()}, path, metadata)
    refused(replace(started, steps=3), message)


@pytest.mark.parametrize(
    "metadata", [{"step": "-1"}, {"step": "x"}, {"best": "nan"}, {"sums": "[]"}, {"sums": '{"a": 3}'}, {"record": "[]"}]
)
def test_numbers_of_a_state_that_are_none(started: TrainConfig, metadata: dict[str, str]) -> None:
    path = started.out / STATE
    with safe_open(path, "pt") as file:
        old = file.metadata()
    save_file(load_file(path), path, old | metadata)
    refused(replace(started, steps=3), r"state\.safetensors: not the state of a run")


@pytest.mark.parametrize("resume", [False, "auto"])
def test_a_checkpoint_without_a_state_is_not_overwritten(started: TrainConfig, resume: bool | str) -> None:
    (started.out / STATE).unlink()
    checkpoint = (started.out / CHECKPOINT).read_bytes()
    with pytest.raises(DataError, match=r"holds a checkpoint\.safetensors without its state\.safetensors"):
        train(replace(started, resume=resume), QUIET)
    assert (started.out / CHECKPOINT).read_bytes() == checkpoint


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "step\nx\n", "step,lr\n1\n", "step\n1,2,3\n", "\udcff", "step\n\n1,\0"])
def test_a_log_that_is_none(started: TrainConfig, text: str) -> None:
    (started.out / "log.csv").write_bytes(text.encode(errors="surrogateescape"))
    refused(replace(started, steps=3), r"log\.csv: not the log of a run; move it away to go on without it")


def test_more_stages_are_frozen_than_there_are(settings: Factory) -> None:
    config = settings("frozen", frozen_stages=7)
    with pytest.raises(DataError, match="frozen_stages must be at most 6, the stages of efficientnet_lite0, got 7"):
        train(config, QUIET)
    assert not config.out.exists()


def test_a_second_run_is_kept_out(settings: Factory) -> None:
    config = settings("busy", resume="auto")
    with output_folder(config.out), pytest.raises(DataError, match=r"out: .*busy is in use by another run"):
        train(config, QUIET)
    train(config, QUIET)
    assert not (config.out / LOCK).exists()


def test_only_the_first_process_takes_the_lock(settings: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings("shared")
    monkeypatch.setattr("sharpmask.training.loop.process_group", lambda: io_rank(1))
    with output_folder(config.out):
        train(config, QUIET)
    assert not (config.out / STATE).exists()


class io_rank:
    """The processes' group, seen by one of them."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __enter__(self) -> int:
        return self.rank

    def __exit__(self, *_: object) -> None:
        pass


def test_weights_that_become_infinite_are_not_saved(started: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Run._train_step

    def spoiled(self: Run, batch: Any) -> dict[str, float]:
        losses = step(self, batch)
        torch.nn.init.constant_(self.learning[0], float("inf"))
        return losses

    monkeypatch.setattr(Run, "_train_step", spoiled)
    checkpoint = (started.out / CHECKPOINT).read_bytes()
    refused(replace(started, steps=3, ema=0.0, resume=True, change=("ema",)), "not written: tensor .* must be finite")
    assert (started.out / CHECKPOINT).read_bytes() == checkpoint


# Real ends.

CHILD = """
import os, signal, sys, time
from pathlib import Path
from sharpmask.cli import main
write, saves = Path.write_bytes, 0

def cut(self, data):
    global saves
    saves += STATE in self.name
    if STATE in self.name and saves == 2:
        write(self, data[: len(data) // 2])
        print("writing", flush=True)
        END
    return write(self, data)

Path.write_bytes = cut
sys.exit(main(sys.argv[1:]))
"""


def start(config: TrainConfig, end: str) -> subprocess.Popen[str]:
    """A run in a process of its own, which comes to ``end`` inside its second writing of the state."""
    config.out.mkdir()
    (config.out / "start.yaml").write_text(yaml.safe_dump(to_plain(config)))
    program = CHILD.replace("STATE", repr(STATE)).replace("END", end)
    command = [sys.executable, "-c", program, "train", "joint", "--config", str(config.out / "start.yaml")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT"])
def test_a_process_ended_inside_a_write(settings: Factory, how: str) -> None:
    whole, ended = settings("whole", steps=3), settings("ended", steps=3)
    train(whole, QUIET)
    process = start(ended, "os.kill(os.getpid(), signal.SIGKILL)" if how == "SIGKILL" else "time.sleep(60)")
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n", process.communicate()[1]
    if how != "SIGKILL":
        process.send_signal(getattr(signal, how))
    error = process.communicate(timeout=60)[1]
    assert process.returncode == (130 if how == "SIGINT" else -getattr(signal, how)), error
    assert "Traceback" not in error
    assert step_of(ended.out) == 1, "the old state is whole"
    parts = list(ended.out.glob(".*.part"))
    assert len(parts) == (0 if how == "SIGINT" else 1)
    train(replace(ended, resume=True), QUIET)
    assert not list(ended.out.glob(".*.part")) and not (ended.out / LOCK).exists()
    for name in (CHECKPOINT, STATE):
        one, other = load_file(whole.out / name), load_file(ended.out / name)
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_several_data_sets_are_told_apart_by_annotations_and_weights(started: TrainConfig, synth: Path) -> None:
    out = started.out.parent / "two"
    two = replace(started, dataset=(synth, f"{synth}:0.5"), out=out)  # type: ignore[arg-type]
    train(two, QUIET)
    train(replace(two, steps=3, resume=True), QUIET)
    mark = "[0-9a-f]{16}"
    other = replace(two, dataset=(synth, f"{synth}:2"), steps=4)  # type: ignore[arg-type]
    told = r"dataset \(by a hash of the annotations\)"
    refused(other, f"{told} '{mark} {mark}:0.5' -> '{mark} {mark}:2'; .*--change dataset$")
    refused(replace(two, dataset=(synth,), steps=4), f"{told} '{mark} {mark}:0.5' -> '{mark}'")
    refused(replace(two, partial=True, steps=4), "partial False -> True")


def test_settings_that_came_later_had_their_defaults(started: TrainConfig) -> None:
    """A state of an older version does not name them."""
    tensors = load_file(started.out / STATE)
    with safe_open(started.out / STATE, "pt") as file:
        metadata = file.metadata()
    record = json.loads(metadata["record"])
    del record["tiles.part_negatives"], record["partial"], record["held_out"]
    save_file(tensors, started.out / STATE, metadata | {"record": json.dumps(record)})
    refused(replace(started, partial=True, steps=3), "partial False -> True; .*--change partial$")
    train(replace(started, steps=3, resume=True), QUIET)

"""Several processes train as one does: what each takes, what they share, and that one which dies changes nothing."""

from __future__ import annotations

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from sharpmask.data.coco import CocoFolder
from sharpmask.data.mixture import Mixture
from sharpmask.data.tile_config import TileConfig
from sharpmask.data.tiles import TileBatch
from sharpmask.models import ModelConfig
from sharpmask.plain import to_plain
from sharpmask.training import TrainConfig, stage_defaults, train
from sharpmask.training import processes as processes_module
from sharpmask.training.batches import load_batches, make_batches, part_of
from sharpmask.training.gradients import set_gradients
from sharpmask.training.log import LOG
from sharpmask.training.loop import CHECKPOINT, STATE, Run
from sharpmask.training.losses import examples, loss_function
from sharpmask.training.stages import TERMS, StageName
from tests.waiting import no_waiting

QUIET = Console(quiet=True)
STAGES: list[StageName] = ["deepmask", "sharpmask", "joint"]
Factory = Callable[..., TrainConfig]


@pytest.fixture
def settings(synth: Path, tiny: ModelConfig, tiny_checkpoint: Path, tmp_path: Path) -> Factory:
    """A short run of any stage into ``tmp_path / name``, in which batches differ in their numbers of windows."""

    def make(name: str, stage: StageName, **changes: Any) -> TrainConfig:
        short = {
            "model": replace(tiny, architecture="deepmask" if stage == "deepmask" else "sharpmask"),
            "start_from": tiny_checkpoint if stage == "sharpmask" else None,
            "trunk_weights": None,
            "frozen_stages": 0,
            "batch_size": 2,
            "tiles": TileConfig(side=80, tiles=1, pasted=1),
            "steps": 5,
            "save_every": 3,
            "log_every": 1,
            "workers": 0,
            "threads": 1,
        }
        return TrainConfig(dataset=(synth,), out=tmp_path / name, **(stage_defaults(stage) | short | changes))

    return make


def losses_of(out: Path) -> list[dict[str, float]]:
    with (out / LOG).open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def assert_close(one: Path, other: Path) -> None:
    """Same losses of every step, and same weights, but for rounding."""
    assert len(losses_of(one)) == len(losses_of(other))
    for a, b in zip(losses_of(one), losses_of(other), strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)
    a, b = load_file(one / CHECKPOINT), load_file(other / CHECKPOINT)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-5)


# What each process takes.


def images_of(config: TrainConfig, rank: int, processes: int, whole: int, steps: int = 3) -> list[list[Tensor]]:
    """The pictures of the batches that a process takes, by step."""
    data = Mixture.of(CocoFolder(config.dataset[0]))
    batches = make_batches(data, config, whole)
    part = part_of(rank, processes, whole)
    loaded = load_batches(data, batches, range(steps), workers=config.workers, device=torch.device("cpu"), part=part)
    pictures = ([b.image if isinstance(b, TileBatch) else b["image"] for b in step] for step in loaded)
    return [list(torch.cat(step)) for step in pictures]


@pytest.mark.parametrize("stage", ["deepmask", "joint"])
def test_no_picture_is_drawn_twice_and_larger_batches_hold_the_same_ones(settings: Factory, stage: StageName) -> None:
    config = settings("x", stage, workers=1)
    shares = [images_of(config, rank, 2, 4) for rank in range(2)]
    double = replace(config, batch_size=8, tiles=replace(config.tiles, tiles=4), workers=0)
    seen: list[Tensor] = []
    for step, alone in enumerate(images_of(double, 0, 1, 1)):
        both = shares[0][step] + shares[1][step]
        assert len(both) == len(alone) and all(map(torch.equal, both, alone))
        assert not any(torch.equal(a, b) for a in both for b in seen)
        seen += both
    assert len({x.numpy().tobytes() for x in seen}) == len(seen)


def joined(batches: list[Any]) -> Any:
    """One batch of the same examples."""
    if not isinstance(batches[0], TileBatch):
        return batches[0] | {name: torch.cat([b[name] for b in batches]) for name in ("image", "target")}
    tiles, counts = torch.cat([b.image for b in batches]), [len(b.image) for b in batches]
    offsets = [sum(counts[:place]) for place in range(len(counts))]
    windows = [b.windows._replace(image=b.windows.image + at) for b, at in zip(batches, offsets, strict=True)]
    parts = [
        (w.select(slice(len(b.masks))), w.select(slice(len(b.masks), None)))
        for w, b in zip(windows, batches, strict=True)
    ]
    order = [first for first, _ in parts] + [rest for _, rest in parts]
    return TileBatch(
        tiles,
        type(windows[0])(*(torch.cat(fields) for fields in zip(*order, strict=True))),
        torch.cat([b.masks for b in batches]),
    )


@pytest.mark.parametrize("stage", STAGES)
def test_the_gradient_of_several_batches_is_that_of_one(settings: Factory, stage: StageName) -> None:
    config = settings("x", stage, sampling="patches" if stage == "sharpmask" else "dense")
    run = Run(config, 0, QUIET)
    run.model.eval()  # each batch would have its own dropout
    batches = [run.batches[number] for number in range(4)]
    if config.sampling == "dense":
        counts = [examples(batch) for batch in batches]
        assert len({count["coarse"] for count in counts}) > 1, "batches of equal weights would prove nothing"
        first = next(batch for batch in batches if len(batch.masks))
        negatives = first.windows.select(slice(len(first.masks), None))
        batches.append(first._replace(windows=negatives, masks=first.masks[:0]))
    found = []
    for together in (batches, [joined(batches)]):
        run.optimizer.zero_grad()
        losses = set_gradients(run.model, loss_function(config), together, range(9)[: len(together)], config)
        found.append(losses | {n: p.grad for n, p in run.model.named_parameters() if p.grad is not None})
    several, one = found
    assert several.keys() == one.keys() and set(TERMS[stage]) <= one.keys()
    for name, value in one.items():
        torch.testing.assert_close(several[name], value, rtol=1e-3, atol=1e-5 * float(value.abs().max() + 1), msg=name)


# In a group.


@pytest.fixture
def group_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.usefixtures("group_of_one")
def test_a_step_in_a_group_waits_for_no_gpu(
    settings: Factory, stage: StageName, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Run._train_step

    def guarded(run: Run, batches: list[Any]) -> dict[str, Tensor]:
        with no_waiting():
            return step(run, batches)

    monkeypatch.setattr(Run, "_train_step", guarded)
    train(settings("x", stage, optimizer="sgd", accumulate=2, steps=3, clip=1.0), QUIET)


@pytest.mark.usefixtures("group_of_one")
def test_each_process_keeps_to_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    taken: list[torch.device] = []
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(processes_module, "usable_device", lambda name: asked.append(name) or torch.device(name))
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert [processes_module.own_device(name).type for name in ("cpu", "cuda")] == ["cpu", "cuda"]
    assert asked == ["cpu", "cuda:3"] and taken == [torch.device("cuda:3")]


# Processes.

TWO = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
import torch.distributed as dist
import yaml
from sharpmask.errors import DataError
from sharpmask.plain import from_plain
from sharpmask.training import TrainConfig, train
from sharpmask.training.loop import Run

folder = Path(sys.argv[1])

def config(name):
    return from_plain(TrainConfig, yaml.safe_load((folder / name).read_text()), name)

rank = int(os.environ["RANK"])
"""

SAME = """
dist.init_process_group()
for stage in ("deepmask", "sharpmask", "joint"):
    train(config(f"{stage}.yaml"))
try:
    train(replace(config("joint.yaml"), seed=rank + 1, out=folder / "differing"))
except DataError as error:
    (folder / f"refused-{rank}").write_text(str(error))
dist.destroy_process_group()
"""

KILLED = """
step = Run._train_step
def until(self, batches):
    if rank == 1 and self.step == 4 and not (folder / "killed-once").exists():
        (folder / "killed-once").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batches)
Run._train_step = until
train(config("killed.yaml"))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def save_settings(config: TrainConfig, folder: Path, name: str) -> None:
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(to_plain(config)))


def test_two_processes_train_as_one_does(settings: Factory, tmp_path: Path) -> None:
    for stage in STAGES:
        save_settings(settings(f"two-{stage}", stage), tmp_path, stage)
        train(settings(f"one-{stage}", stage, accumulate=2), QUIET)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO + SAME, str(tmp_path)],
            env=os.environ | address | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
    for stage in STAGES:
        assert_close(tmp_path / f"two-{stage}", tmp_path / f"one-{stage}")
    refused = [(tmp_path / f"refused-{rank}").read_text() for rank in range(2)]
    assert refused[0] == refused[1] and "\n" not in refused[0]
    assert refused[0].startswith("training: the hash of settings and data must be the same in all processes, got ")
    assert not (tmp_path / "differing").exists()


def test_a_killed_process_is_started_again_and_changes_nothing(settings: Factory, tmp_path: Path) -> None:
    config = settings("killed", "joint", resume="auto")
    save_settings(config, tmp_path, "killed")
    (tmp_path / "train.py").write_text(TWO + KILLED)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run(
        [*torchrun, "--max-restarts", "1", str(tmp_path / "train.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "killed-once").exists()
    train(settings("whole", "joint", accumulate=2), QUIET)
    assert_close(config.out, tmp_path / "whole")
    # One process goes on where two were, and takes the batches of both.
    for name in ("killed", "whole"):
        train(replace(settings(name, "joint", accumulate=1 if name == "killed" else 2), steps=7, resume=True), QUIET)
    assert_close(config.out, tmp_path / "whole")
    assert {path.name for path in config.out.glob("*.safetensors")} == {CHECKPOINT, STATE}


# Asked to end.


def test_a_run_that_is_asked_to_end_saves_first(settings: Factory, tmp_path: Path) -> None:
    """The signal goes to the whole group, as schedulers and torchrun send it: also to the loader's workers."""
    whole, ended = settings("whole", "joint", steps=6), settings("ended", "joint", steps=6, save_every=100, workers=1)
    train(whole, QUIET)
    save_settings(ended, tmp_path, "ended")
    program = """
import sys
from sharpmask.cli import main
from sharpmask.training.loop import Run
step = Run._train_step
def told(self, batches):
    if self.step == 2:
        print("here", flush=True)
        sys.stdin.readline()
    return step(self, batches)
Run._train_step = told
sys.exit(main(sys.argv[1:]))
"""
    command = [sys.executable, "-c", program, "train", "joint", "--config", str(tmp_path / "ended.yaml")]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n", process.communicate()[1]
    os.killpg(process.pid, signal.SIGTERM)
    time.sleep(0.2)  # for a worker to end, if the signal ends it
    _, said = process.communicate("\n", timeout=600)
    assert process.returncode == 143, said
    assert said.splitlines()[-1] == "sharpmask: ended at step 3 of 6, which is saved; --resume goes on with it"
    train(replace(ended, resume=True, workers=0, save_every=3), QUIET)
    for name in (CHECKPOINT, STATE):
        one, other = load_file(whole.out / name), load_file(ended.out / name)
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    assert (whole.out / LOG).read_text() == (ended.out / LOG).read_text()

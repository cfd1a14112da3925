"""Steps of training on a GPU: what they wait for, in which precision, compiled. The same code runs on the CPU."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from rich.console import Console
from torch import Tensor
from torch.utils.data import Dataset

from sharpmask.data.coco import CocoFolder
from sharpmask.data.mixture import Mixture
from sharpmask.data.sampling import PatchBatches, PatchSampler
from sharpmask.data.tiles import TileConfig
from sharpmask.devices import to_device
from sharpmask.errors import DataError
from sharpmask.evaluation import PatchMetrics, Validator
from sharpmask.models import ModelConfig, SharpMask
from sharpmask.training import TrainConfig, stage_defaults, train
from sharpmask.training import batches as batches_module
from sharpmask.training.loop import Run
from sharpmask.training.stages import StageName
from tests.waiting import no_waiting, strictly

QUIET = Console(quiet=True)
STAGES: dict[str, dict[str, Any]] = {
    "deepmask": {},
    "sharpmask": {},
    "joint": {"tiles": TileConfig(side=80, tiles=2, pasted=2), "frozen_stages": 0, "trunk_weights": None},
}
Losses = list[dict[str, Tensor]]


class Steps:
    """Runs of six steps. ``losses`` are those of the last one, ``reads`` at which steps it read them."""

    def __init__(self, synth: Path, tiny: ModelConfig, checkpoint: Path, out: Path, patch: pytest.MonkeyPatch) -> None:
        self.dataset, self.model, self.checkpoint, self.out = synth, tiny, checkpoint, out
        self.losses: Losses = []
        self.reads: list[int] = []
        self.guard: Callable[[], AbstractContextManager[Any]] = nullcontext
        self.unguarded = 0  # steps at the beginning
        step, read = Run._train_step, Run._read_losses

        def guarded(run: Run, batch: Any) -> dict[str, Tensor]:
            with self.guard() if run.step >= self.unguarded else nullcontext():
                self.losses.append(step(run, batch))
            return self.losses[-1]

        def counted(run: Run) -> None:
            self.reads.append(run.step)
            read(run)

        patch.setattr(Run, "_train_step", guarded)
        patch.setattr(Run, "_read_losses", counted)

    def __call__(self, stage: StageName, **changes: Any) -> Losses:
        self.losses, self.reads = [], []
        short: dict[str, Any] = {
            "model": replace(self.model, architecture="deepmask" if stage == "deepmask" else "sharpmask"),
            "start_from": self.checkpoint if stage == "sharpmask" else None,
            "batch_size": 2,
            "steps": 6,
            "log_every": 3,
            "workers": 0,
        }
        settings = stage_defaults(stage) | STAGES[stage] | short | changes
        out = self.out / str(len(list(self.out.iterdir())))
        train(TrainConfig(dataset=(self.dataset,), out=out, **settings), QUIET)
        return self.losses


@pytest.fixture
def steps(
    synth: Path, tiny: ModelConfig, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Steps:
    return Steps(synth, tiny, tiny_checkpoint, tmp_path, monkeypatch)


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_waits_for_nothing_and_losses_are_read_for_the_log(steps: Steps, stage: StageName) -> None:
    steps.guard = no_waiting
    # AdamW counts its steps on the CPU, and reads that. With the guard of a GPU it is tried below.
    found = steps(stage, optimizer="sgd", clip=1.0, ema=0.9)
    assert steps.reads == [3, 6]
    assert len(found) == 6 and all(
        loss.isfinite() and not loss.requires_grad for each in found for loss in each.values()
    )


def test_losses_are_read_before_anything_is_measured_or_saved(steps: Steps) -> None:
    steps("deepmask", log_every=100, save_every=4, validate_every=3)
    assert steps.reads == [3, 4, 6]


@pytest.mark.parametrize("stage", STAGES)
def test_bf16_is_close_to_fp32(steps: Steps, stage: StageName) -> None:
    exact, rough = steps(stage, steps=2), steps(stage, steps=2, precision="bf16")
    for a, b in zip(exact, rough, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert b[name].dtype == torch.float32
            torch.testing.assert_close(b[name], a[name], rtol=0.03, atol=0.01)
        assert any(not torch.equal(a[name], b[name]) for name in a)


COMPILED = [
    ("sharpmask", "aot_eager"),
    *(pytest.param(stage, "aot_eager", marks=pytest.mark.slow) for stage in ("deepmask", "joint")),
    *(pytest.param(stage, "inductor", marks=pytest.mark.slow) for stage in STAGES),
]


@pytest.mark.parametrize(("stage", "backend"), COMPILED)
def test_compiled_steps_compute_the_same(
    steps: Steps, stage: StageName, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = steps(stage, precision="bf16", steps=3)
    # Whole: whatever breaks a graph waits for the device, or costs a launch from Python.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend, fullgraph=True))
    torch._dynamo.reset()
    compiled = steps(stage, precision="bf16", compile=True, steps=3)
    for a, b in zip(plain, compiled, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            torch.testing.assert_close(b[name], a[name], rtol=0.03, atol=0.01)


def test_batches_go_to_a_gpu_from_pinned_memory(synth: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []

    def loader(_: Any, **options: Any) -> list[Any]:
        given.append(options)
        return []

    monkeypatch.setattr(batches_module, "DataLoader", loader)
    folder = CocoFolder(synth)
    patches = PatchBatches(PatchSampler(folder, head="mask", window=48), None, score_share=0)
    for name in ("cpu", "cuda"):
        batches = batches_module.load_batches(folder, patches, range(3), workers=2, device=torch.device(name))
        assert not list(batches)
    assert [options["pin_memory"] for options in given] == [False, True]
    assert all(options["num_workers"] == 2 for options in given)


def test_more_workers_than_cores_are_no_warning(
    synth: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    data = Mixture.of(CocoFolder(synth))
    patches = PatchBatches(PatchSampler(data, head="mask", window=48), None, batch_size=1, score_share=0)
    loaded = batches_module.load_batches(data, patches, range(1), workers=2, device=torch.device("cpu"))
    assert len(list(loaded)) == 1
    assert not [warning for warning in recwarn if "worker" in str(warning.message)]


def test_what_a_process_leaves_out_is_reported_once() -> None:
    data = Mixture([cast(CocoFolder, SimpleNamespace(skipped=["read"], cache=SimpleNamespace(exif="stored")))])

    class Damaged(Dataset[int]):
        def __getitem__(self, number: int) -> int:
            data.leave_out(f"photo {number // 2}")
            if number == 3:
                raise DataError("no more")
            return number

    reporting = batches_module._Reporting(data, Damaged())
    assert [reporting[number].skipped for number in range(4)] == [["photo 0"], [], ["photo 1"], []]
    assert isinstance(reporting[3].batch, DataError)


def test_the_time_that_batches_are_waited_for_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 13.0, 19.0, 20.0, 40.0, 80.0])
    monkeypatch.setattr(batches_module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    batches = batches_module.Waits(iter(["a", "b"]))
    assert next(batches) == "a"  # 10 to 13
    assert next(batches) == "b"  # 19 to 20
    assert batches.share() == pytest.approx(4 / 40)
    assert batches.share() == 0


def test_validation_reads_only_its_results(
    synth: Path, tiny_sharpmask: SharpMask, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard, compute = ExitStack(), PatchMetrics.compute

    def read(metrics: PatchMetrics) -> dict[str, float]:
        guard.close()
        return compute(metrics)

    monkeypatch.setattr(PatchMetrics, "compute", read)
    validator = Validator(CocoFolder(synth), tiny_sharpmask.config, samples=4, batch_size=2)
    with guard:
        guard.enter_context(no_waiting())
        assert len(validator(tiny_sharpmask)) == 9


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_step_waits_for_nothing_on_a_gpu(steps: Steps, stage: StageName, precision: str, compiled: bool) -> None:
    steps.guard, steps.unguarded = strictly, 6  # Kernels are loaded at their first use.
    found = steps(stage, device="cuda", precision=precision, compile=compiled, steps=12)
    assert all(loss.is_cuda for each in found for loss in each.values())


@pytest.mark.gpu
def test_batches_are_copied_without_waiting() -> None:
    batch = {"image": torch.rand(2, 3, 8, 8), "kind": "mask"}
    with strictly():
        moved = to_device(batch, torch.device("cuda"))
    assert torch.equal(moved["image"].cpu(), batch["image"]) and moved["kind"] == "mask"

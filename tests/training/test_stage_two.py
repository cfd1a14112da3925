"""The second stage learns the same on the C++ kernels as on plain PyTorch; and the commands run on them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from sharpmask import ProposalGenerator
from sharpmask.checkpoint import load_model
from sharpmask.training import TrainConfig, stage_defaults, train
from sharpmask.training.loop import CHECKPOINT, Run
from sharpmask_kernels import dispatch, use_backend
from sharpmask_kernels.backends.cpu import device as cpu

QUIET = Console(quiet=True)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def settings(dataset: Path, start: Path, out: Path, steps: int) -> TrainConfig:
    short: dict[str, Any] = {"batch_size": 4, "steps": steps, "lr": 0.01, "workers": 0, "threads": 1}
    return TrainConfig(dataset=(dataset,), start_from=start, out=out, **(stage_defaults("sharpmask") | short))


@pytest.mark.parametrize("steps", [20, pytest.param(300, marks=pytest.mark.slow)])
def test_losses_and_parameters_are_those_of_plain_pytorch(
    synth: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    losses: list[float] = []
    step = Run._train_step

    def watched(self: Run, batch: Any) -> dict[str, Tensor]:
        values = step(self, batch)
        losses.extend(value.item() for value in values.values())
        return values

    monkeypatch.setattr(Run, "_train_step", watched)
    found = {}
    for backend in ("cpu", "reference"):
        losses.clear()
        with use_backend(backend):
            train(settings(synth, tiny_checkpoint, tmp_path / backend, steps), QUIET)
        found[backend] = (losses.copy(), load_file(tmp_path / backend / CHECKPOINT))
    (ours, model), (plain, reference) = found["cpu"], found["reference"]
    assert len(ours) == len(plain) == steps
    for i, (x, y) in enumerate(zip(ours, plain, strict=True)):
        # Rounding of 2^-24, which grows as the runs go their ways.
        assert x == pytest.approx(y, rel=1e-5), f"step {i}"
    before = load_model(tiny_checkpoint).state_dict()
    learned = [name for name in before if not torch.equal(reference[name], before[name])]
    assert len(learned) > 10
    for name in before:
        moved = (reference[name] - before[name]).norm()
        assert (model[name] - reference[name]).norm() <= 1e-4 * moved + 1e-6 * before[name].norm(), name
    assert math.isfinite(sum(ours)) and sum(plain[-10:]) < sum(plain[:10])


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, str]]:
    """Ops and backends that were chosen from here on."""
    found: set[tuple[str, str]] = set()
    choose = dispatch.choose

    def watched(op: str, *rest: Any) -> str:
        chosen = choose(op, *rest)
        found.add((op, chosen))
        return chosen

    monkeypatch.setattr(dispatch, "choose", watched)
    return found


def test_training_runs_on_the_compiled_kernels(
    synth: Path, tiny_checkpoint: Path, tmp_path: Path, ran: set[tuple[str, str]]
) -> None:
    assert cpu.unavailable() is None
    train(settings(synth, tiny_checkpoint, tmp_path / "run", 1), QUIET)
    assert ran and {backend for _, backend in ran} == {"cpu"}


def test_proposals_run_on_the_compiled_kernels(synth: Path, tiny_checkpoint: Path, ran: set[tuple[str, str]]) -> None:
    """What propose, eval and demo have in common."""
    generator = ProposalGenerator(load_model(tiny_checkpoint), top_n=5)
    generator.generate(synth / "images" / "000001.png")
    assert {backend for _, backend in ran} == {"cpu"}
    assert {op for op, _ in ran} >= {"gather_windows", "refine_windows", "encode_windows"}

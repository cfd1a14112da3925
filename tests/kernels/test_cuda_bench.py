"""The report for whoever has a GPU, and TensorRT as a peer, where there is neither."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import gpu, tensorrt_peer
from bench.plain import GatherWindows, MergeUpsample

from ..contract.inputs import windows_at


@pytest.mark.parametrize("obstacle", [None, "torch_tensorrt is not installed"])
def test_every_step_is_in_the_report(obstacle: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tensorrt_peer, "missing", lambda: obstacle)
    monkeypatch.setattr(gpu, "run", lambda step: (int("pytest" in step), f"output of {step}"))
    monkeypatch.setattr(sys, "argv", ["gpu", str(tmp_path / "report.md")])
    assert gpu.main() == 1  # one step has failed; those after it are there
    report = (tmp_path / "report.md").read_text()
    steps = gpu.STEPS if obstacle else gpu.STEPS + gpu.TENSORRT
    assert [line[10:] for line in report.splitlines() if line.startswith("## python ")] == steps
    assert all(f"output of {step}" in report for step in steps)
    assert report.count("Exit status 1.") == 1
    assert (f"TensorRT was not measured: {obstacle}." in report) == (obstacle is not None)


def test_no_gpu_no_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu", str(tmp_path / "report.md")])
    with pytest.raises(SystemExit):
        gpu.main()
    assert not (tmp_path / "report.md").exists()


def test_tensorrt_takes_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, looping = MergeUpsample(2, 3, 4), GatherWindows(windows_at((0, 0, 0, 0)), 2, 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert tensorrt_peer.obstacle(plain, False) is None
    assert "gradients" in str(tensorrt_peer.obstacle(plain, True))
    assert "loops" in str(tensorrt_peer.obstacle(looping, False))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert tensorrt_peer.obstacle(plain, False) == "torch_tensorrt is not installed"


def test_tensorrt_is_given_the_module_and_the_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def compile(module: torch.nn.Module, **options: Any) -> torch.nn.Module:
        given.update(options, module=module)
        return module

    monkeypatch.setitem(sys.modules, "torch_tensorrt", SimpleNamespace(compile=compile))  # type: ignore[misc]
    plain, inputs = MergeUpsample(2, 3, 4), (torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, 4))
    assert tensorrt_peer.prepare(plain, inputs)(*inputs).shape == (1, 4, 8, 8)
    assert given["module"] is plain and given["inputs"] == list(inputs) and given["disable_tf32"]

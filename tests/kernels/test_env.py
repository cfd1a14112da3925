"""The report for bug reports."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

from sharpmask_kernels import dispatch, env, registry, self_check
from sharpmask_kernels.backends import native
from sharpmask_kernels.backends.cpu import device as cpu


def test_report(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARPMASK_NATIVE", "1")
    assert env.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.partition("  ")[0]: line for line in lines}
    assert torch.__version__ in rows["torch"]
    assert cpu.module().__file__ in rows["compiled module"]
    assert "-O3" in rows["compiled by"]
    assert rows["SHARPMASK_NATIVE"].split()[1] == "1"
    for name, state in dispatch.available_backends().items():
        assert rows[name].partition(" ")[2].strip() == state
    header = next(line.split() for line in lines if line.split()[:1] == ["op"])
    assert header[1:] == list(registry.BACKENDS)
    for op in registry.OPS:
        assert rows[op].split()[1:] == ["yes" if registry.backend(name).has(op) else "-" for name in registry.BACKENDS]


def test_report_without_the_compiled_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_load", lambda: "no compiler")
    text = env.report()
    assert re.search("^compiled module +none: no compiler$", text, re.MULTILINE)
    assert any(line.split(maxsplit=1) == ["cpu", "no compiler"] for line in text.splitlines())


def test_report_of_the_cuda_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "_cuda_built.txt").write_text('{"sources": "0", "for": "compute capability 9.0, later ones by PTX"}')
    loaded = ModuleType("_cuda")
    loaded.__file__ = str(tmp_path / "_cuda.so")
    monkeypatch.setattr(native, "load", lambda name: loaded)
    assert ("for GPUs of", "compute capability 9.0, later ones by PTX") in env.cuda_module()
    (tmp_path / "_cuda_built.txt").unlink()
    assert ("for GPUs of", "unknown") in env.cuda_module()


def test_columns_are_aligned() -> None:
    assert env.table([("a", "bb", "c"), ("ddd", "e", "")]) == "a    bb  c\nddd  e"


def test_check(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # Interpreted and emulated kernels take minutes; test_dispatch.py checks those.
    ready = {
        name: state for name, state in dispatch.available_backends().items() if not registry.backend(name).simulated()
    }
    monkeypatch.setattr(dispatch, "available_backends", lambda: ready)
    assert env.main(["--check"]) == 0
    assert ["cpu", "cpu", "gather_windows", "ok"] in [line.split() for line in capsys.readouterr().out.splitlines()]
    monkeypatch.setattr(self_check, "check", lambda backend, device: {"gather_windows": "off by 1"})
    assert env.main(["--check"]) == 1
    assert "off by 1" in capsys.readouterr().out

"""The compiled module is there, and where it is not the package works and says why."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sharpmask_kernels.backends import native
from sharpmask_kernels.backends.cpu import device as cpu


def test_the_compiled_module_is_ready() -> None:
    """Fails, not skips: without it nothing of ``csrc`` is tested. CONTRIBUTING.md tells how to install."""
    assert cpu.unavailable() is None


def test_it_says_how_it_was_built() -> None:
    info = cpu.module().build_info()
    assert "-std=c++17" in info["flags"]
    assert info["openmp"] == ("-fopenmp" in info["flags"])
    assert info["compiler"]


@pytest.fixture
def reload() -> Iterator[None]:
    """The module is looked for anew, in the test and after it."""
    native.load.cache_clear()
    yield
    native.load.cache_clear()


@pytest.mark.usefixtures("reload")
def test_the_installations_reason_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "_cpu_missing.txt").write_text("no working C++17 compiler: false: exit status 1\n")
    monkeypatch.setattr(native, "PACKAGE", tmp_path)
    monkeypatch.setitem(sys.modules, "sharpmask_kernels._cpu", None)
    assert cpu.unavailable() == "not compiled at installation: no working C++17 compiler: false: exit status 1"
    with pytest.raises(RuntimeError, match="not compiled at installation"):
        cpu.module()


@pytest.mark.usefixtures("reload")
def test_a_module_that_does_not_load_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", fail)
    assert cpu.unavailable() == "sharpmask_kernels._cpu cannot be loaded: libgomp.so.1: cannot open shared object file"


WITHOUT = """
import sys
sys.modules.update({"sharpmask_kernels._cpu": None, "triton": None})  # importing either now raises
import torch
import sharpmask_kernels as kernels

found = kernels.available_backends()
assert found["reference"] == "ready" and "was not compiled" in found["cpu"], found
windows = kernels.topk_windows([torch.arange(12.0).view(1, 1, 3, 4)], 2)
maps = torch.ones(1, 2, 3, 4)
assert kernels.gather_windows(maps, windows, 2).sum() > 0
try:
    kernels.gather_windows(maps, windows, 2, backend="cpu")
except RuntimeError as error:
    assert "was not compiled" in str(error), error
else:
    raise AssertionError("backend='cpu' ran on something else")
"""


def test_the_package_works_without_the_module_and_without_triton() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

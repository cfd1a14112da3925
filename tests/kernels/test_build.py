"""The compiled module is there, and where it is not the package works and says why."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from sharpmask_kernels.backends import native
from sharpmask_kernels.backends.cpu import device as cpu
from sharpmask_kernels.sources import digest

ROOT = Path(__file__).parents[2]


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


@pytest.fixture
def checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A checkout without compiled modules, as if this package were in it, and beside it an installed package."""
    root = tmp_path / "a clone"
    shutil.copytree(ROOT / "csrc", root / "csrc")
    (root / "sharpmask_kernels").mkdir()
    (tmp_path / "site" / "sharpmask_kernels").mkdir(parents=True)
    monkeypatch.setattr(native, "PACKAGE", root / "sharpmask_kernels")
    monkeypatch.setattr(sys, "path", ["", str(tmp_path / "site")])
    monkeypatch.chdir(root)
    monkeypatch.delitem(sys.modules, "sharpmask_kernels._cpu", raising=False)
    return root


def installed(tmp_path: Path, sources: str) -> None:
    package = tmp_path / "site" / "sharpmask_kernels"
    (package / f"_cpu{sysconfig.get_config_var('EXT_SUFFIX')}").write_bytes(b"no module")
    (package / "_cpu_built.txt").write_text(json.dumps({"sources": sources}))


@pytest.mark.usefixtures("reload")
def test_the_installations_reason_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "_cpu_missing.txt").write_text("no working C++17 compiler: false: exit status 1\n")
    monkeypatch.setattr(native, "PACKAGE", tmp_path)
    monkeypatch.setitem(sys.modules, "sharpmask_kernels._cpu", None)
    assert cpu.unavailable() == "not compiled at installation: no working C++17 compiler: false: exit status 1"
    with pytest.raises(RuntimeError, match="not compiled at installation"):
        cpu.module()


@pytest.mark.usefixtures("reload")
def test_a_module_that_does_not_load_is_told(checkout: Path, tmp_path: Path) -> None:
    installed(tmp_path, digest(checkout / "csrc", "_cpu"))
    assert str(cpu.unavailable()).startswith("sharpmask_kernels._cpu cannot be loaded: ")


@pytest.mark.usefixtures("reload")
def test_a_checkout_without_modules_says_what_to_run(checkout: Path) -> None:
    assert cpu.unavailable() == (
        f"sharpmask_kernels._cpu was not compiled for this Python; run: python -m pip install -e '{checkout}'"
    )


@pytest.mark.usefixtures("reload")
def test_a_checkout_tells_the_reason_of_the_installed_package(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "site" / "sharpmask_kernels" / "_cpu_missing.txt").write_text("left out by SHARPMASK_NATIVE=0\n")
    assert cpu.unavailable() == "not compiled at installation: left out by SHARPMASK_NATIVE=0"


@pytest.mark.usefixtures("reload")
def test_a_module_of_other_sources_is_not_loaded(checkout: Path, tmp_path: Path) -> None:
    installed(tmp_path, digest(checkout / "csrc", "_cpu"))
    (checkout / "csrc" / "cpu" / "parallel.h").write_text("// changed\n")
    reason = str(cpu.unavailable())
    assert "was compiled from other sources than" in reason
    assert reason.endswith(f"run: python -m pip install -e '{checkout}'")


def test_the_sources_of_one_module_are_not_those_of_the_other(checkout: Path) -> None:
    csrc = checkout / "csrc"
    before = digest(csrc, "_cpu"), digest(csrc, "_cuda")
    (csrc / "python" / "cuda.cpp").write_text("")
    (csrc / "cuda" / "device.cuh").write_text("")
    (csrc / "notes.txt").write_text("")
    assert digest(csrc, "_cpu") == before[0]
    assert digest(csrc, "_cuda") != before[1]


IN_CLONE = """
import sys
sys.path[:] = [entry for entry in sys.path if entry != sys.argv[1]]
import sharpmask_kernels
from sharpmask_kernels.backends.cpu import device
print(sharpmask_kernels.__file__)
print(device.module().__file__)
"""


def test_in_a_clone_the_installed_module_serves(tmp_path: Path) -> None:
    """As after ``pip install .`` in the clone: Python finds the clone's files first."""
    compiled = Path(str(cpu.module().__file__))
    package = tmp_path / "site" / "sharpmask_kernels"
    package.mkdir(parents=True)
    for path in (compiled, compiled.with_name("_cpu_built.txt")):
        shutil.copy(path, package)
    clone = tmp_path / "clone"
    shutil.copytree(ROOT / "csrc", clone / "csrc")
    ignored = shutil.ignore_patterns("*.so", "_c*_*.txt", "__pycache__")
    shutil.copytree(ROOT / "sharpmask_kernels", clone / "sharpmask_kernels", ignore=ignored)
    # Left by an editable install of other sources.
    (clone / "sharpmask_kernels" / compiled.name).write_bytes(b"")
    environment = os.environ | {"PYTHONPATH": str(package.parent)}
    command = [sys.executable, "-c", IN_CLONE, str(ROOT)]
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, module = done.stdout.splitlines()
    assert Path(found).parent == clone / "sharpmask_kernels"
    assert Path(module).parent == package


def test_a_build_has_no_file_of_an_older_version(tmp_path: Path) -> None:
    left = tmp_path / "sharpmask" / "removed.py"
    left.parent.mkdir()
    left.write_text("")
    command = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (left.parent / "__init__.py").exists()
    assert not left.exists()


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

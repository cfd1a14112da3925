"""contributing/new-op.md is true: the op that it adds, added to a copy of the checkout, passes the contract suite."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORKED_OP = ROOT / "contributing/new_op"
MOST_FILES = 12
MOST_LINES_OF_PLUMBING = 60

KERNEL_OR_TEST = ("csrc/cpu/", "sharpmask_kernels/backends/reference/", "tests/")
"""Kernel, oracle or test, not plumbing."""


def new_files() -> list[str]:
    return [
        path.relative_to(WORKED_OP).as_posix() for path in sorted(WORKED_OP.rglob("*.*")) if path.suffix != ".patch"
    ]


def edits() -> dict[str, list[str]]:
    """The lines that edits.patch adds, by file."""
    found: dict[str, list[str]] = {}
    for line in (WORKED_OP / "edits.patch").read_text().splitlines():
        if line.startswith("+++ b/"):
            added = found.setdefault(line.removeprefix("+++ b/"), [])
        elif line.startswith("+"):
            added.append(line[1:])
    return found


def test_the_page_lists_the_files() -> None:
    page = (ROOT / "contributing/new-op.md").read_text().rpartition("## The files")[2]
    assert all(f"`{name}`" in page for name in [*new_files(), *edits()])
    assert len(new_files()) + len(edits()) <= MOST_FILES


def test_little_is_plumbing() -> None:
    added = {name: (WORKED_OP / name).read_text().splitlines() for name in new_files()} | edits()
    plumbing = [line for name, lines in added.items() if not name.startswith(KERNEL_OR_TEST) for line in lines]
    code = [line for line in plumbing if line.strip() and not line.strip().startswith(("#", '"""', "from ", "import "))]
    assert len(code) <= MOST_LINES_OF_PLUMBING


@pytest.mark.slow
def test_the_worked_op_passes_the_contract(tmp_path: Path) -> None:
    copy = tmp_path / "checkout"
    ignored = shutil.ignore_patterns(".*", "build", "*.so", "_c*_*.txt", "__pycache__", "*.egg-info", "venv*")
    shutil.copytree(ROOT, copy, ignore=ignored)
    shutil.copytree(WORKED_OP, copy, dirs_exist_ok=True)

    def run(*command: str, **environment: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(copy), **environment}
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    run("git", "apply", "edits.patch")
    # Not optimised: to compile is most of this test.
    run(sys.executable, "setup.py", "build_ext", "--inplace", SHARPMASK_NATIVE="1", SHARPMASK_CUDA="0", CXXFLAGS="-O0")
    run(
        *(sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "-k", "scale_channels"),
        *("tests/contract", "tests/test_architecture.py", "tests/kernels/test_dispatch.py"),
    )

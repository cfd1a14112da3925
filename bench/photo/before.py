"""An earlier commit of this repository, with its kernels compiled in place, in a cache folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .process import ROOT, Failed

COMMIT = "44d2e9c"
"""The last commit before photos were searched in a form for inference."""


def checkout(commit: str, cache: Path) -> Path:
    """A folder with the files of ``commit`` and compiled kernels, from the cache if it is there.

    Raises :class:`Failed` if this clone lacks the commit or its kernels do not compile.
    """
    found = _git("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}")
    if found.returncode:
        raise Failed(f"this clone has no commit {commit}; in a shallow clone, git fetch --unshallow gets it")
    # Compiled modules serve one version of Python.
    folder = cache / f"{found.stdout.decode().strip()[:12]}-{sys.implementation.cache_tag}"
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        archive = _git("archive", "--format=tar", commit)
        subprocess.run(["tar", "-x", "-C", str(new)], input=archive.stdout, check=True)
        _compile(new)
        shutil.move(new, folder)  # only when it is whole
    return folder


def _compile(folder: Path) -> None:
    """Compiles the C++ kernels of a checkout in place."""
    environment = os.environ | {"SHARPMASK_NATIVE": "1", "SHARPMASK_CUDA": "0", "PYTHONPATH": ""}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "nothing was said").splitlines()[-1]
        raise Failed(f"its kernels do not compile: {last}")


def _git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=False)


def default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sharpmask-bench"

"""Do the tests notice a missing barrier? ``python -m tests.emulator.barriers`` removes each in turn, in a copy.

Exits with 1 if the tests of the CUDA kernels pass without one of the barriers.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from . import CSRC, ROOT, build

BARRIER = re.compile(r"__syncthreads\(\);")
TESTS = [str(ROOT / "tests" / "kernels" / "test_cuda.py"), "-k", "schedules or any_plan"]


def survives(module: Path) -> bool:
    """Whether the tests pass with the kernels of ``module``."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *TESTS]
    environment = {**os.environ, "SHARPMASK_EMULATOR": str(module)}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    if done.returncode in (2, 3, 4, 5):  # of pytest itself; a kernel that crashes Python is negative, and caught
        raise RuntimeError(f"pytest could not run:\n{done.stdout}{done.stderr}")
    return done.returncode == 0


def main() -> int:
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        csrc = Path(folder, "csrc")
        shutil.copytree(CSRC, csrc)
        if not survives(build(csrc=csrc, folder=Path(folder, "build"))):
            raise RuntimeError("the tests fail with all barriers in place")
        for path in sorted(csrc.rglob("*.cuh")):
            source = path.read_text()
            for barrier in BARRIER.finditer(source):
                path.write_text(source[: barrier.start()] + source[barrier.end() :])
                survived = survives(build(csrc=csrc, folder=Path(folder, "build")))
                survivors += survived
                line = source.count("\n", 0, barrier.start()) + 1
                print(f"{path.name}:{line}  {'SURVIVED' if survived else 'caught'}", flush=True)
            path.write_text(source)
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())

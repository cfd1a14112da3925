"""Everybody held to a lesser instruction set than the CPU has: ``--isa``."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence

VARIABLES = {
    "avx2": {
        "SHARPMASK_CPU_ISA": "avx2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",  # OpenVINO reads it, too
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    }
}
"""What the libraries read when they are loaded."""

HELD = "SHARPMASK_BENCH_ISA"
"""The variable that says to the process with these that it is held."""

UNHELD = frozenset({"onnxruntime"})
"""The peers that have no such variable."""

MARK = "-not-held"


def held() -> bool:
    """Whether this process is."""
    return HELD in os.environ


def tell(peer: str) -> str:
    """The name of a peer, which says so if it alone has more than the instruction set that the others are held to."""
    return f"{peer}{MARK}" if peer in UNHELD and held() else peer


def run_held(module: str, arguments: Sequence[str], isa: str) -> int:
    """Runs a module with these arguments in a process of its own, and returns its exit status."""
    with tempfile.TemporaryDirectory() as folder:
        # PyTorch caches parameters that it has laid out for the CPU's best, and computes wrong results with these.
        held = {**VARIABLES[isa], HELD: isa, "TORCHINDUCTOR_CACHE_DIR": folder}
        return subprocess.run([sys.executable, "-m", module, *arguments], env={**os.environ, **held}).returncode

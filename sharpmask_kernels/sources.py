"""Tells a compiled module of these C++ and CUDA sources from one of others. setup.py runs this file by itself, without
the package: nothing of it is imported here."""

from __future__ import annotations

import hashlib
from pathlib import Path

SUFFIXES = (".h", ".cpp", ".cu", ".cuh")


def digest(csrc: Path, module: str) -> str:
    """A hash of the sources below ``csrc`` that ``module``, _cpu or _cuda, is compiled from."""
    other = {"_cpu": "cuda", "_cuda": "cpu"}[module]  # the folder, and the file in csrc/python
    found = hashlib.sha256()
    for path in sorted(csrc.rglob("*")):
        name = path.relative_to(csrc)
        if path.suffix in SUFFIXES and other not in name.with_suffix("").parts:
            found.update(f"{name.as_posix()}\n".encode() + path.read_bytes())
    return found.hexdigest()[:16]

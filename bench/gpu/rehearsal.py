"""The GPU's backends without a GPU: Triton's interpreter and the emulator of CUDA's threads, of the tests."""

from __future__ import annotations

import importlib


def prepare() -> None:
    """Before Triton is imported, with TRITON_INTERPRET=1."""
    for name in ("interpreter", "emulator"):
        importlib.import_module(f"tests.{name}").install()

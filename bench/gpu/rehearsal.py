"""The GPU's backends without a GPU: Triton's interpreter and the emulator of CUDA's threads, of the tests."""

from __future__ import annotations

from tests import emulator, interpreter


def prepare() -> None:
    """Before Triton is imported, with TRITON_INTERPRET=1."""
    interpreter.install()
    emulator.install()

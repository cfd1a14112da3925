"""The C++ kernels of ``csrc/cpu``, for tensors on the CPU.

The compiled module ``sharpmask_kernels._cpu`` knows nothing of PyTorch: it takes addresses, sizes and strides, and the
number of threads. It is loaded when it is first asked for.
"""

from __future__ import annotations

from types import ModuleType

from ...registry import OPS, Backend
from .. import native


def _load() -> ModuleType | str:
    return native.load("_cpu")


def module() -> ModuleType:
    """The compiled module. Raises ``RuntimeError`` where :func:`unavailable` gives a reason."""
    return native.required(_load())


def unavailable() -> str | None:
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


BACKEND = Backend(
    "cpu",
    ops=OPS,
    devices=("cpu",),
    dtypes=tuple(native.DTYPES),
    unavailable=unavailable,
)

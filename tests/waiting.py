"""Guards against code that waits for a GPU: on the CPU, and on a GPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from sharpmask_kernels import checks

OPERATIONS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique")
"""Operations whose result the host needs."""
CALLS = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__")
"""Methods that read values; on the CPU some of them call no operation."""


class _NoOperations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        indices = args[1] if name.startswith("index") and len(args) > 1 else ()
        masks = isinstance(indices, list | tuple) and any(x is not None and x.dtype == torch.bool for x in indices)
        assert name not in OPERATIONS and not masks, f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


class _NoCalls(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        # Windows are checked on the CPU alone.
        assert name not in CALLS or sys._getframe(1).f_code is checks.windows.__code__, f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


@contextmanager
def no_waiting() -> Iterator[None]:
    """Refuses, on the CPU, what would wait if its tensors were on a GPU."""
    with _NoOperations(), _NoCalls():
        yield


@contextmanager
def strictly() -> Iterator[None]:
    """Refuses what waits for a GPU, as far as PyTorch knows."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")

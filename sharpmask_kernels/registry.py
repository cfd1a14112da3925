"""The ops, the backends, and which has which.

An op lives in the room of the same name in every layer: ``ops/<room>.py`` has its arguments, checks and autograd,
``backends/<backend>/<room>.py`` has its kernels. A backend is a folder of ``backends/`` whose ``device.py`` declares a
:class:`Backend`. To look one up neither needs nor loads what its kernels run on.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch

from . import checks

ROOMS = {
    "merge_upsample": "refinement",
    "refine": "refinement",
    "add_upsample": "refinement",
    "upsample_merge": "decoder",
    "upsample_add": "decoder",
    "gather_windows": "gather_windows",
    "refine_windows": "refine_windows",
    "encode_windows": "encode_windows",
    "horizontal": "horizontal",
    "inverted_residual": "inverted_residual",
}
"""The room of every op that backends implement; ``topk_windows`` is PyTorch's own operations on every device."""

OPS = tuple(ROOMS)

BACKENDS = ("reference", "cuda", "triton", "cpu")
"""The folders of ``backends/``. On a device that several take automatically, the first comes first."""


@dataclass(frozen=True)
class Backend:
    """What a backend declares in its ``device.py``, under the name ``BACKEND``."""

    name: str
    ops: tuple[str, ...]
    """The ops that it has, in the rooms of :data:`ROOMS`."""
    devices: tuple[str, ...] = ()
    """The device types of PyTorch that it takes, and for which it is chosen automatically; none: it takes all."""
    dtypes: tuple[torch.dtype, ...] = ()
    """The dtypes of maps that it takes; none: it takes all."""
    self_checked: bool = False
    """Whether it is chosen automatically only where a self-check has found it to agree with the reference."""
    unavailable: Callable[[], str | None] = lambda: None
    """Why it cannot run here, or None if it can."""
    simulated: Callable[[], bool] = lambda: False
    """Whether its kernels are interpreted or emulated, on tensors of the CPU: for tests."""

    def refusal(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why it does not take maps of this device and dtype, or None if it does."""
        simulated = device.type == "cpu" and self.simulated()
        if self.devices and device.type not in self.devices and not simulated:
            return self._refuse(f"on a {' or '.join(self.devices)} device", device)
        if self.dtypes and dtype not in self.dtypes:
            *most, last = map(str, self.dtypes)
            return self._refuse(f"of dtype {', '.join(most)} or {last}", dtype)
        return None

    def _refuse(self, expected: str, came: object) -> str:
        return str(checks.refusal("maps", f"{expected} on backend {self.name!r}", came))

    def has(self, op: str) -> bool:
        return op in self.ops


@functools.cache
def backend(name: str) -> Backend:
    """The declaration of the backend ``name``."""
    declared: Backend = importlib.import_module(f"{__package__}.backends.{name}.device").BACKEND
    return declared


@functools.cache
def room(backend: str, name: str) -> ModuleType:
    """The module with the kernels of the room ``name`` on a backend."""
    return importlib.import_module(f"{__package__}.backends.{backend}.{name}")


def automatic(device_type: str) -> list[Backend]:
    """The backends that are tried without being asked for, best first; after them comes the reference."""
    return [declared for declared in map(backend, BACKENDS) if device_type in declared.devices]


def devices() -> list[torch.device]:
    """The devices of this machine that some backend declares to take, the CPU first."""
    types = dict.fromkeys(("cpu", *(type_ for name in BACKENDS for type_ in backend(name).devices)))
    counts = {type_: 0 if type_ == "cpu" else torch.get_device_module(type_).device_count() for type_ in types}
    return [torch.device("cpu"), *(torch.device(type_, i) for type_, count in counts.items() for i in range(count))]


def having(op: str) -> list[str]:
    """The names of the backends that have the op."""
    return [name for name in BACKENDS if backend(name).has(op)]

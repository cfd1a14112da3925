"""What the backends of compiled modules, ``cpu`` and ``cuda``, share: how a module is loaded, and how it gets tensors.

A compiled module knows nothing of PyTorch: it takes addresses, sizes and strides. The caller holds the tensors until it
returns.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from .. import layout
from ..sources import digest

PACKAGE = Path(__file__).parents[1]

DTYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}
"""The dtypes of maps, with their numbers in ``DType`` of ``csrc/common/half.h``."""
NUMBERS = {**DTYPES, torch.uint8: 4}


@functools.cache
def load(name: str) -> ModuleType | str:
    """The module ``sharpmask_kernels.<name>``, or why there is none.

    In a checkout, Python finds these files before an installed copy of the package. Where nothing was compiled beside
    them, the installed module serves, if it was compiled from the same sources. Setup.py notes the sources beside the
    module in ``<name>_built.txt``, and why one could not be built in ``<name>_missing.txt``.
    """
    module = f"sharpmask_kernels.{name}"
    try:
        if module in sys.modules:  # a test's
            return importlib.import_module(module)
        spec, reason = _find(name)
        if spec is None or spec.loader is None:
            return reason
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
    except ModuleNotFoundError:
        return _missing(name)
    except ImportError as error:
        return f"{module} cannot be loaded: {error}"
    return sys.modules.setdefault(module, loaded)


def _find(name: str) -> tuple[ModuleSpec | None, str]:
    """Where the module is, or why it cannot be used."""
    reasons = []
    for folder in _folders():
        spec = PathFinder.find_spec(f"sharpmask_kernels.{name}", [str(folder)])
        if spec is None or spec.origin is None:
            continue
        reason = _outdated(name, Path(spec.origin))
        if reason is None:
            return spec, ""
        reasons.append(reason)
    return None, reasons[0] if reasons else _missing(name)


def built_for(module: ModuleType) -> str:
    """What a compiled module was compiled for: instruction sets, or GPUs."""
    return str(_note(Path(str(module.__file__))).get("for", "unknown"))


def sources_of(module: ModuleType) -> str:
    """A hash of what a compiled module was compiled from."""
    return str(_note(Path(str(module.__file__))).get("sources", "unknown"))


def _folders() -> list[Path]:
    """Where a compiled module may be: beside these files, or where the package is installed."""
    return [PACKAGE, *(Path(entry, PACKAGE.name) for entry in sys.path)]


def _checkout() -> Path | None:
    """The checkout that these files are in."""
    return PACKAGE.parent if Path(PACKAGE.parent, "csrc", "python", "cpu.cpp").exists() else None


def _note(module: Path) -> dict[str, str]:
    try:
        found = json.loads(module.with_name(f"{module.name.partition('.')[0]}_built.txt").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _outdated(name: str, module: Path) -> str | None:
    """Why a compiled module does not belong to this checkout, if it does not."""
    checkout = _checkout()
    if checkout is None or _note(module).get("sources") == digest(Path(checkout, "csrc"), name):
        return None
    return f"{module} was compiled from other sources than {Path(checkout, 'csrc')}; {_remedy(checkout)}"


def _missing(name: str) -> str:
    for folder in _folders():
        missing = Path(folder, f"{name}_missing.txt")
        if missing.exists():
            return f"not compiled at installation: {missing.read_text().strip()}"
    checkout = _checkout()
    remedy = _remedy(checkout) if checkout else "install the package with this Python's pip"
    return f"sharpmask_kernels.{name} was not compiled for this Python; {remedy}"


def _remedy(checkout: Path) -> str:
    return f"run: python -m pip install -e {shlex.quote(str(checkout))}"


def required(loaded: ModuleType | str) -> ModuleType:
    """What :func:`load` found. Raises ``RuntimeError`` if that is a reason."""
    if isinstance(loaded, str):
        raise RuntimeError(loaded)
    return loaded


class LazyModule:
    """The compiled module ``name``, loaded when something of it is first asked for.

    That raises ``RuntimeError`` if there is none. A type checker reads the module's stub in its place.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> object:
        value = getattr(required(load(self._name)), name)
        setattr(self, name, value)  # found at once the next time
        return value


TensorView = tuple[int, int, tuple[int, ...], tuple[int, ...]]
"""What a compiled module sees of a tensor of up to four dimensions: its address, the number of its dtype in
``NUMBERS``, its sizes, and its strides in elements. Plain, since a named tuple takes twice as long to make."""


class WindowsView(NamedTuple):
    """What a compiled module sees of windows: how many, and the addresses of their fields, each contiguous int64."""

    length: int
    image: int
    scale: int
    row: int
    col: int


def view(x: Tensor) -> TensorView:
    return x.data_ptr(), NUMBERS[x.dtype], x.shape, x.stride()


def optional_view(x: Tensor | None) -> TensorView | None:
    return None if x is None else view(x)


def windows_view(image: Tensor, scale: Tensor, row: Tensor, col: Tensor) -> WindowsView:
    """Of contiguous fields, which the caller holds until the call returns."""
    return WindowsView(scale.shape[0], image.data_ptr(), scale.data_ptr(), row.data_ptr(), col.data_ptr())


# gather_windows is the same for both backends. `run` is the module's function, with its last argument already given.


def gather_windows(
    run: Callable[..., None],
    maps: Sequence[Tensor],
    image: Tensor,
    scale: Tensor,
    row: Tensor,
    col: Tensor,
    size: int,
    step: int,
) -> Tensor:
    shape = (image.shape[0], maps[0].shape[1], size, size)
    out = layout.empty(shape, maps[0], layout.memory_format(*maps))
    windows = [x.contiguous() for x in (image, scale, row, col)]
    run(maps=[view(m) for m in maps], windows=windows_view(*windows), step=step, out=view(out))
    return out


def gather_windows_backward(
    run: Callable[..., None],
    grad: Tensor,
    image: Tensor,
    scale: Tensor,
    row: Tensor,
    col: Tensor,
    batch: int,
    heights: Sequence[int],
    widths: Sequence[int],
    channels_last: bool,
    needs: Sequence[bool],
    step: int,
) -> list[Tensor]:
    memory_format = layout.chosen(channels_last)
    gradients = [
        layout.empty((batch, grad.shape[1], height, width), grad, memory_format) if need else None
        for height, width, need in zip(heights, widths, needs, strict=True)
    ]
    windows = [x.contiguous() for x in (image, scale, row, col)]
    views = [optional_view(gradient) for gradient in gradients]
    run(grad=view(grad), windows=windows_view(*windows), step=step, gradients=views)
    return [gradient for gradient in gradients if gradient is not None]

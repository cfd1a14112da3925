"""``torch.utils.flop_counter`` counts an op as the convolutions of its plain form."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

_COUNTER = "torch.utils.flop_counter"

_plain: dict[str, Callable[..., Any]] = {}


def count_as(name: str, plain: Callable[..., Any]) -> None:
    """Count the op ``name`` as what ``plain`` does with the same arguments."""
    _plain[name] = plain
    if _COUNTER in sys.modules:
        _register(name)


def _register(name: str) -> None:
    counter = sys.modules[_COUNTER]

    def flops(*arguments: Any, out_val: Any = None, **_: Any) -> int:
        shapes = pytree.tree_map_only(Tensor, lambda x: torch.empty(x.shape, dtype=x.dtype, device="meta"), arguments)
        with counter.FlopCounterMode(display=False) as mode:
            _plain[name](*shapes)
        return int(mode.get_total_flops())

    counter.register_flop_formula(getattr(torch.ops.sharpmask, name), get_raw=True)(flops)


class _WhenImported(importlib.abc.MetaPathFinder):
    """Registers the formulas once somebody imports the counter, which takes long because it imports Triton."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        loader: Any = spec and spec.loader
        if loader is not None:
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                for name in _plain:
                    _register(name)

            loader.exec_module = exec_module
        return spec


if _COUNTER not in sys.modules:
    sys.meta_path.insert(0, _WhenImported())

"""Forwards of public classes in a form that can be traced: the same results, without questions about types or sizes."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .sources import uses_only


def _up_cat(self: Any, x: Tensor, x_e: Tensor | None) -> Tensor:
    """UpCat of MONAI: a row or column is missing in the upsampled map where the skip's size is odd."""
    x = self.upsample(x)
    if x_e is not None:
        if self.is_pad:
            columns, rows = (1 * (x_e.shape[i] != x.shape[i]) for i in (-1, -2))
            x = F.pad(x, [0, columns, 0, rows], "replicate")
        x = torch.cat([x_e, x], dim=1)
    return self.convs(x)


_UP_CAT_NAMES = "upsample isinstance torch jit Tensor is_pad len shape range nn functional pad convs cat"

_SIMPLER: dict[tuple[str, str], tuple[Callable[..., Any], str]] = {("monai", "UpCat"): (_up_cat, _UP_CAT_NAMES)}
"""Package and class, the simpler forward, and the names that the class's own forward uses, as far as it is known."""


def _simpler(module: nn.Module) -> Callable[..., Any] | None:
    kind = type(module)
    forward, names = _SIMPLER.get((kind.__module__.partition(".")[0], kind.__name__), (None, ""))
    return forward if forward and uses_only(kind.forward, names) else None


@contextmanager
def simplified(root: nn.Module) -> Iterator[None]:
    """Let the modules in ``root`` whose classes are known have simpler forwards for a while."""
    classes = {module: type(module) for module in root.modules()}
    try:
        for module, kind in classes.items():
            if forward := _simpler(module):
                module.__class__ = _with_forward(kind, forward)
        yield
    finally:
        for module, kind in classes.items():
            module.__class__ = kind


def _with_forward(kind: Any, forward: Callable[..., Any]) -> type[nn.Module]:
    return types.new_class(kind.__name__, (kind,), exec_body=lambda namespace: namespace.update(forward=forward))

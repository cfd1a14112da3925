"""What the code of a user's class says before any of it runs."""

from __future__ import annotations

import functools
import inspect
import re
import types
from collections.abc import Iterator
from typing import Any

from torch import fx, nn

_UPSAMPLING = re.compile(r"interpolate|upsampl|resize|(^|_)ups?(_|\d|$)", re.IGNORECASE)
_LAYERS = (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, nn.ConvTranspose2d)


def may_upsample(module: nn.Module) -> bool:
    """Whether the module or a part of it upsamples, as far as layers and the words of their code tell."""
    return any(isinstance(part, _LAYERS) or upsamples(part) for part in module.modules())


def upsamples(module: nn.Module) -> bool:
    """Whether the module's own code, as far as its words tell, upsamples."""
    functions = [value for value in vars(module).values() if isinstance(value, types.FunctionType)]
    kind: Any = type(module)
    if isinstance(module, fx.GraphModule):  # generated code, not read
        return True
    return _class_upsamples(kind) or any(map(_mentions, functions))


@functools.cache
def _class_upsamples(kind: type[nn.Module]) -> bool:
    classes = [each for each in kind.__mro__ if not each.__module__.startswith("torch.")]
    members = [each for one in classes for name, each in vars(one).items() if name != "__init__"]
    return any(_mentions(each) for each in members if isinstance(each, types.FunctionType))


def _mentions(function: types.FunctionType) -> bool:
    """Whether the function, or one that it calls by name, uses a name that speaks of upsampling."""
    names = set(_names(function.__code__))
    called = [function.__globals__.get(name) for name in names]
    further = {name for f in called if isinstance(f, types.FunctionType) for name in _names(f.__code__)}
    return any(map(_UPSAMPLING.search, names | further))


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    yield from code.co_freevars
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def takes_none(kind: type[nn.Module], argument: str) -> bool:
    """Whether forward's annotation of the argument says that it may be None."""
    annotation = inspect.signature(kind.forward).parameters[argument].annotation
    return "None" in str(annotation) or "Optional" in str(annotation)


def uses_only(function: object, names: str) -> bool:
    """Whether a function uses no other names: a check that another version of a package has not changed it."""
    code = getattr(function, "__code__", None)
    return code is not None and set(code.co_names) <= set(names.split())

"""What the code of a user's class says before any of it runs."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterator

from torch import nn

_UPSAMPLING = re.compile(r"interpolate|upsampl|(^|_)ups?(_|\d|$)", re.IGNORECASE)


def upsamples(module: nn.Module) -> bool:
    """Whether the methods of the module's class, as far as their words tell, upsample by themselves."""
    classes = type(module).__mro__[: type(module).__mro__.index(nn.Module)]
    methods = [each for kind in classes for name, each in vars(kind).items() if name != "__init__"]
    codes = [each.__code__ for each in methods if isinstance(each, types.FunctionType)]
    return any(map(_UPSAMPLING.search, (name for code in codes for name in _names(code))))


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
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

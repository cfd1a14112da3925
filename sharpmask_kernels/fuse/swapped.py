"""The classes that swapped modules get: a subclass of the user's class with another forward."""

from __future__ import annotations

import copy
import copyreg
import functools
import linecache
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import Parameter
from typing import Any

from torch import nn

from .. import hooks
from .trace import forward_parameters

Forward = Callable[..., Any]


class Swapped(nn.Module):
    """The base of every swapped module's class.

    A pickle holds the plain module, so that loading it needs the user's own code alone.
    """

    _plain_class: type[nn.Module]
    _is_swapped = False  # set on each swapped object, because others may get its class later

    def __reduce_ex__(self, protocol: Any) -> Any:
        recipe: Any = super().__reduce_ex__(protocol)
        if recipe[0] is not copyreg.__newobj__ or not isinstance(recipe[2], dict):  # type: ignore[attr-defined]
            return recipe  # the user's class pickles in a way of its own
        state = {name: value for name, value in recipe[2].items() if name != "_is_swapped"}
        return object.__new__, (self._plain_class,), state

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        if users_own := getattr(super(), "__deepcopy__", None):
            return users_own(memo)
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        recipe: Any = super().__reduce_ex__(4)
        twin.__setstate__(copy.deepcopy(recipe[2], memo))
        return twin


def swap(module: nn.Module, swapped_class: type[nn.Module]) -> None:
    """Give the module, which stays the same object, its new class."""
    module.__class__ = swapped_class
    vars(module)["_is_swapped"] = True


def plain_again(module: nn.Module) -> None:
    """Take back what :func:`swap` did."""
    swapped_class: Any = type(module)
    module.__class__ = swapped_class._plain_class
    vars(module).pop("_is_swapped", None)


# Both functions below are cached: modules of one class with the same code share one new class, which
# torch.compile then compiles once.


@functools.cache
def adapted_class(base: Any, forward: Forward) -> type[nn.Module]:
    """A subclass of ``base`` that runs an adapter's forward."""
    return _subclass(base, forward)


@functools.cache
def planned_class(base: Any, plans: tuple[Plan, ...]) -> type[nn.Module]:
    """A subclass of ``base`` that runs the generated code of the plan for the arguments of a call.

    It runs the forward of ``base`` where no plan holds: for other arguments, or after a change of a part.
    """
    parameters = forward_parameters(base)
    names = tuple(parameters)
    required = {name for name, default in parameters.items() if default is Parameter.empty}
    defaults = {name: None if default is Parameter.empty else default for name, default in parameters.items()}
    compiled = {plan.given: (_compile(base, plan), plan) for plan in plans}
    lists = {name for plan in plans for name, length in plan.given if length is not None}

    @functools.wraps(base.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        all_given = {**dict(zip(names, args, strict=False)), **kwargs}
        given = {name: value for name, value in all_given.items() if value is not defaults.get(name, _NOTHING)}
        code = compiled.get(
            frozenset((name, _length(value) if name in lists else None) for name, value in given.items())
        )
        complete = len(args) <= len(names) and required <= all_given.keys()
        if code is None or not complete or not self._is_swapped or any(map(_has_none, given.values())):
            return base.forward(self, *args, **kwargs)
        run, plan = code
        if hooks.anywhere() or not all(part.is_unchanged(self) for part in plan.parts):
            return base.forward(self, *args, **kwargs)
        result = run(self, **given)
        if plan.assigns:
            result, attributes = result
            for name, value in attributes.items():
                setattr(self, name, value)
        return result

    return _subclass(base, forward)


def _subclass(base: Any, forward: Forward) -> type[nn.Module]:
    def body(namespace: dict[str, Any]) -> None:
        namespace.update(forward=forward, _plain_class=base, __module__=base.__module__, __doc__=base.__doc__)

    return types.new_class(f"Fused{base.__name__}", (Swapped, base), exec_body=body)


@dataclass(frozen=True)
class Part:
    """A module that the generated code bypasses, as it was when the code was generated.

    The fused module itself is the first part; its path is empty.
    """

    path: tuple[str, ...]
    kind: type[nn.Module]
    options: tuple[str, ...]
    values: tuple[object, ...]

    @staticmethod
    def of(path: str, module: nn.Module) -> Part:
        """Record a module by its path in the fused module."""
        options = tuple(name for name, value in vars(module).items() if name not in _MODULE_STATE and _is_plain(value))
        values = tuple(vars(module)[name] for name in options)
        return Part(tuple(filter(None, path.split("."))), type(module), options, values)

    def is_unchanged(self, root: nn.Module) -> bool:
        """Whether the generated code still holds: no new hooks, class, parametrization or options."""
        module: nn.Module = functools.reduce(getattr, self.path, root)
        if self.path and (type(module) is not self.kind or hooks.customized(module)):
            return False
        return tuple(getattr(module, option, None) for option in self.options) == self.values


_MODULE_STATE = frozenset(vars(nn.Module()))


def _is_plain(value: object) -> bool:
    items = value if isinstance(value, tuple) else (value,)
    return all(item is None or isinstance(item, (bool, int, float, str)) for item in items)


@dataclass(frozen=True)
class Plan:
    """Generated code for the calls that give exactly the arguments ``given``, lists among them in these lengths.

    If the code ``assigns``, it returns a pair: the result, and the attributes that forward sets, by their names.
    """

    given: frozenset[tuple[str, int | None]]
    source: str
    parts: tuple[Part, ...]
    assigns: bool
    globals: dict[str, Any] = field(compare=False)


_NOTHING = object()


def _length(value: object) -> int | None:
    return len(value) if type(value) is list else None


def _has_none(value: object) -> bool:
    """Whether an argument, or an item of a list, is None: the user's forward may branch on that."""
    return value is None or (isinstance(value, (list, tuple)) and any(item is None for item in value))


def _compile(base: type[nn.Module], plan: Plan) -> Forward:
    name = f"<fused {base.__qualname__} {hash(plan) & 0xFFFFFFFF:08x}>"
    linecache.cache[name] = len(plan.source), None, plan.source.splitlines(True), name  # for tracebacks
    namespace = dict(plan.globals)
    exec(compile(plan.source, name, "exec"), namespace)
    return namespace["forward"]

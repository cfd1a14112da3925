"""fuse(model): the refinement modules of a model of one's own, computed by the ops."""

from __future__ import annotations

import copy
import copyreg
import functools
import inspect
import linecache
import re
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

from ..functional import add_upsample
from ..modules import Refinement
from .match import Chain, conv_problem, find
from .trace import customized, forward_parameters, is_torch_layer, trace

Matches = Callable[[nn.Module], bool]
Forward = Callable[..., Any]


@dataclass(frozen=True)
class FuseReport:
    """What :func:`fuse` did. ``int(report)`` is the number of refinement modules swapped.

    A name is that of the refinement module, or of its merging convolution where one module holds several.
    """

    swapped: tuple[str, ...]
    left: dict[str, str]
    """Upsamplings and modules that were looked at and left as they are, with the reason."""

    def __int__(self) -> int:
        return len(self.swapped)

    def __str__(self) -> str:
        left = {name or "(the model itself)": reason for name, reason in self.left.items()}
        width = max(map(len, left), default=0)
        lines = [f"swapped: {len(self.swapped)}", *(f"  {name}" for name in self.swapped), f"left: {len(left)}"]
        return "\n".join(lines + [f"  {name:{width}}  {reason}" for name, reason in left.items()])


def fuse(model: nn.Module) -> FuseReport:
    """Let the ops compute the refinement modules of ``model``, in place, and say which.

    Looked for is what gives the same values: an upsampling x2, bilinear (half-pixel centres) or nearest, of

    - ReLU(Conv(Concat(S, M))), in either order: ``refine`` if S = ReLU(Conv(F)) has the same padding mode and no
      other use, else ``merge_upsample``;
    - ReLU(H + Conv(M)): ``add_upsample``;
    - a module that an adapter knows (:func:`register_adapter`).

    Every module stays the object that it was, with its attributes, parameters, hooks and names; a swapped one gets a
    subclass of its class with another forward. Raises ``TypeError`` if ``model`` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    run = _Run()
    for name, module in _post_order(model):
        run.visit(name, module)
    run.report("", model, covered=False)
    return FuseReport(tuple(dict.fromkeys(run.swapped)), run.left)


def register_adapter(kind: type[nn.Module] | Matches, forward: Forward) -> None:
    """Teach :func:`fuse` a kind of module that it cannot find by itself.

    ``kind`` is a class (instances of exactly that class) or a function that tells whether a module is meant;
    ``forward(module, *args, **kwargs)`` then runs in place of the class's own. The last adapter registered is
    asked first, and adapters before the search by structure. It is for ``kind`` to say no where ``forward`` would
    not do the same, for instance because of hooks on a part. Raises ``TypeError`` for anything else.
    """
    if not callable(kind) or (isinstance(kind, type) and not issubclass(kind, nn.Module)):
        raise TypeError(f"kind must be a subclass of torch.nn.Module or a function, got {kind!r}")
    if not callable(forward):
        raise TypeError(f"forward must be a function, got {forward!r}")
    matches: Matches = (lambda module: type(module) is kind) if isinstance(kind, type) else kind
    _adapters.insert(0, (matches, forward))


_adapters: list[tuple[Matches, Forward]] = []


class _Fused(nn.Module):
    """What the classes of swapped modules have in common.

    A pickle holds the module as it was, so that reading it takes nothing but the user's own code.
    """

    _plain_class: type[nn.Module]
    _is_fused = False  # True on the objects swapped, not on others that their class might come to have

    def __reduce_ex__(self, protocol: Any) -> Any:
        recipe: Any = super().__reduce_ex__(protocol)
        if recipe[0] is not copyreg.__newobj__ or not isinstance(recipe[2], dict):  # type: ignore[attr-defined]
            return recipe  # the user's own way
        state = {name: value for name, value in recipe[2].items() if name != "_is_fused"}
        return object.__new__, (self._plain_class,), state

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        if theirs := getattr(super(), "__deepcopy__", None):
            return theirs(memo)
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        recipe: Any = super().__reduce_ex__(4)
        twin.__setstate__(copy.deepcopy(recipe[2], memo))
        return twin


def _become(module: nn.Module, fused: type[nn.Module]) -> None:
    module.__class__ = fused
    vars(module)["_is_fused"] = True


def _subclass(base: Any, forward: Forward) -> type[nn.Module]:
    def body(namespace: dict[str, Any]) -> None:
        namespace.update(forward=forward, _plain_class=base, __module__=base.__module__, __doc__=base.__doc__)

    return types.new_class(f"Fused{base.__name__}", (_Fused, base), exec_body=body)


# One class for all modules of a class and the same code, so that torch.compile compiles it once.
_adapted_class = functools.cache(_subclass)


@dataclass(frozen=True)
class _Part:
    """A module that generated code does not call, as it was when the code was generated."""

    path: tuple[str, ...]  # from the fused module, which is its own first part
    kind: type[nn.Module]
    options: tuple[str, ...]
    values: tuple[object, ...]

    def is_unchanged(self, root: nn.Module) -> bool:
        """Whether the code still holds: no hooks have come since, no parametrization, no other options."""
        module: nn.Module = functools.reduce(getattr, self.path, root)
        if self.path and (type(module) is not self.kind or customized(module)):
            return False
        return tuple(getattr(module, option, None) for option in self.options) == self.values


def _part(path: str, module: nn.Module) -> _Part:
    options = tuple(name for name, value in vars(module).items() if name not in _MODULE_STATE and _is_plain(value))
    values = tuple(vars(module)[name] for name in options)
    return _Part(tuple(filter(None, path.split("."))), type(module), options, values)


_MODULE_STATE = frozenset(vars(nn.Module()))


def _is_plain(value: object) -> bool:
    items = value if isinstance(value, tuple) else (value,)
    return all(item is None or isinstance(item, (bool, int, float, str)) for item in items)


@dataclass(frozen=True)
class _Plan:
    """Code for calls that give exactly these arguments."""

    given: frozenset[str]
    source: str
    parts: tuple[_Part, ...]
    globals: dict[str, Any] = field(compare=False)


@functools.cache
def _planned_class(base: Any, plans: tuple[_Plan, ...]) -> type[nn.Module]:
    defaults = forward_parameters(base)
    names = tuple(defaults)
    compiled = {plan.given: (_compile(base, plan), plan.parts) for plan in plans}

    @functools.wraps(base.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        given = {name: value for name, value in given.items() if value is not defaults.get(name, _NOTHING)}
        code = compiled.get(frozenset(given))
        if code is None or len(args) > len(names) or not self._is_fused or any(map(_lacks, given.values())):
            return base.forward(self, *args, **kwargs)
        run, parts = code
        if not all(part.is_unchanged(self) for part in parts):
            return base.forward(self, *args, **kwargs)
        return run(self, **given)

    return _subclass(base, forward)


_NOTHING = object()


def _lacks(value: object) -> bool:
    """Whether an argument or one of several in a list is None: forward may then take another way."""
    return value is None or (isinstance(value, (list, tuple)) and any(item is None for item in value))


def _compile(base: type[nn.Module], plan: _Plan) -> Forward:
    name = f"<fused {base.__qualname__} {hash(plan) & 0xFFFFFFFF:08x}>"
    linecache.cache[name] = len(plan.source), None, plan.source.splitlines(True), name  # for tracebacks
    namespace = dict(plan.globals)
    exec(compile(plan.source, name, "exec"), namespace)
    return namespace["forward"]


def _post_order(
    module: nn.Module, name: str = "", seen: set[nn.Module] | None = None
) -> Iterator[tuple[str, nn.Module]]:
    seen = set() if seen is None else seen
    if module not in seen:
        seen.add(module)
        for child_name, child in module.named_children():
            yield from _post_order(child, _join(name, child_name), seen)
        yield name, module


def _join(*names: str) -> str:
    return ".".join(filter(None, names))


def _has_forward(module: nn.Module) -> bool:
    # Static: a scripted module's is no function, and looking it up on the class fails.
    return inspect.getattr_static(type(module), "forward") is not nn.Module.forward


@dataclass
class _Run:
    """One call of fuse."""

    swapped: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    untraced: dict[nn.Module, str] = field(default_factory=dict)
    missed: dict[nn.Module, dict[str, str]] = field(default_factory=dict)

    def is_leaf(self, module: nn.Module) -> bool:
        """What the trace of a larger module calls as it is."""
        return isinstance(module, (Refinement, _Fused)) or customized(module) or module in self.untraced

    def visit(self, name: str, module: nn.Module) -> None:
        if isinstance(module, (Refinement, _Fused)):
            self.missed[module] = {}
            return
        if is_torch_layer(module) or not _has_forward(module):
            return
        base: Any = type(module)
        for matches, forward in _adapters:
            if matches(module):
                _become(module, _adapted_class(base, forward))
                self.missed[module] = {}
                self.swapped.append(name)
                return
        try:
            plans, found = self.plan(module)
        except Exception as error:  # a trace runs the user's code, which may raise anything
            self.untraced[module] = re.split(r"\n|\. ", str(error).strip())[0] or type(error).__name__
            return
        if plans:
            _become(module, _planned_class(base, plans))
            self.swapped += [name] if len(found) == 1 and name else [_join(name, conv) for conv in found]

    def plan(self, module: nn.Module) -> tuple[tuple[_Plan, ...], list[str]]:
        """How to compute the module's calls, and the names of the chains found."""
        if "forward" in vars(module):
            raise TraceError("its forward was replaced on the object")
        if isinstance(module, fx.GraphModule):
            raise TraceError("it is a GraphModule, whose class torch.fx generates itself")
        plans: list[_Plan] = []
        found: list[str] = []
        for given, graph, single in self.traces(module):
            chains, missed = find(module, graph)
            if module not in self.missed or (chains and not plans):
                self.missed[module] = missed
            if chains:
                plans.append(self.rewritten(module, graph, chains, given, single))
                found += [chain.name for chain in chains]
        return tuple(plans), list(dict.fromkeys(found))

    def traces(self, module: nn.Module) -> list[tuple[list[str], fx.Graph, set[nn.Module]]]:
        """The module's forward with all its optional tensors, and with none: None is a branch of its own."""
        defaults = forward_parameters(type(module))
        required = [name for name, default in defaults.items() if default is inspect.Parameter.empty]
        optional = [name for name, default in defaults.items() if default is None]
        traces, errors = [], []
        for given in [required + optional, required] if optional else [required]:
            try:
                traces.append((given, *trace(module, self.is_leaf, given)))
            except Exception as error:
                errors.append(error)
        if not traces:
            raise errors[0]
        return traces

    def rewritten(
        self, module: nn.Module, graph: fx.Graph, chains: list[Chain], given: list[str], single: set[nn.Module]
    ) -> _Plan:
        # What takes no part stays a call, so that hooks that come later run.
        calls = single - {owner for chain in chains for node in chain.nodes for owner in node.meta["owners"]}
        narrow, _ = trace(module, lambda part: self.is_leaf(part) or part in calls, given)
        again, _ = find(module, narrow)
        if [chain.name for chain in again] == [chain.name for chain in chains]:
            graph, chains = narrow, again
        uncalled = {owner for node in graph.nodes if node.op != "call_module" for owner in node.meta["owners"]}
        uncalled |= {owner for chain in chains for node in chain.nodes for owner in node.meta["owners"]}
        for chain in reversed(chains):  # a chain may take the result of one before it
            chain.replace(graph)
        for node in graph.nodes:
            node.type = None  # annotations may be names that only the user's file knows
        code = graph.python_code("self")
        parts = tuple(_part(name, part) for name, part in module.named_modules() if part in {module, *uncalled})
        return _Plan(frozenset(given), code.src, parts, code.globals)

    def report(self, name: str, module: nn.Module, *, covered: bool) -> None:
        """Fill ``left``; what the trace of a larger module covers is told with that one."""
        own = not covered or self.is_leaf(module)
        if own:
            self.left.update({_join(name, inner): reason for inner, reason in self.missed.get(module, {}).items()})
        if module in self.untraced and self.is_innermost(module):
            self.left[name] = f"cannot be traced: {self.untraced[module]}"
        if _has_forward(module):
            covered = not own or module in self.missed
        for child_name, child in module.named_children():
            self.report(_join(name, child_name), child, covered=covered)

    def is_innermost(self, module: nn.Module) -> bool:
        """Whether the module holds convolutions that no part of it which could not be traced holds."""

        def convolves(part: nn.Module) -> bool:
            return any(isinstance(layer, nn.Conv2d) for layer in part.modules())

        parts = (part for part in module.modules() if part is not module and part in self.untraced)
        return convolves(module) and not any(map(convolves, parts))


def _is_two_net_refinement(module: nn.Module) -> bool:
    """Is it the refinement module of the public PyTorch port of DeepMask and SharpMask, foolwood/deepmask-pytorch?

    There ``layer1`` is the horizontal net, ``layer2`` the vertical one, ``layer3`` the ReLU and the upsampling; the
    convolutions pad by reflection, in a layer before each.
    """
    nets: list[Any] = [getattr(module, f"layer{i}", None) for i in (1, 2, 3)]
    if type(module).__name__ != "RefineModule" or not all(type(net) is nn.Sequential for net in nets):
        return False
    last = [*list(nets[1])[-2:], *nets[2]]
    return (
        [type(layer) for layer in last] == [nn.ReflectionPad2d, nn.Conv2d, nn.ReLU, nn.UpsamplingNearest2d]
        and last[0].padding == (1, 1, 1, 1)
        and conv_problem(last[1], padding=0) is None
        and last[3].scale_factor == 2
        and not any(map(customized, [*nets[1:], *last]))
    )


def _two_net_refinement(module: Any, maps: tuple[Tensor, Tensor]) -> Tensor:
    """The op pads by itself, so it computes a border of one cell too much, which is cut off."""
    horizontal, mask = module.layer1(maps[0]), maps[1]
    *layers, conv = module.layer2
    for layer in layers:
        mask = layer(mask)
    horizontal = F.pad(horizontal, (1, 1, 1, 1))
    return add_upsample(horizontal, mask, conv.weight, conv.bias, upsample="nearest")[:, :, 2:-2, 2:-2]


register_adapter(_is_two_net_refinement, _two_net_refinement)

"""torch.fx traces that are complete: a forward that a trace cannot record in full raises an error.

A plain symbolic trace silently drops what it cannot record: the branch not taken, contexts such as ``no_grad`` and
``autocast``, checkpointing, attributes that forward sets on the module. Code generated from such a trace would
change a model, so each of these raises :class:`Untraceable` here.
"""

from __future__ import annotations

import inspect
import operator
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils.checkpoint
from torch import fx, nn
from torch.fx.immutable_collections import immutable_dict
from torch.fx.proxy import TraceError

from .simpler import simplified

PACKAGE = __name__.partition(".")[0]

DEVICE_TYPES = ("cpu", "cuda", "xpu", "mps", "hpu", "xla", "ipu", "maia", "mtia", "privateuseone")
AUTOCAST_DEVICES = tuple(filter(torch.amp.is_autocast_available, DEVICE_TYPES))
"""The device types that autocast can be set for, whether or not this machine has such a device."""


def is_torch_layer(module: nn.Module) -> bool:
    """Whether a trace calls the module without looking inside: PyTorch's own layers and all convolutions."""
    return isinstance(module, nn.Conv2d) or fx.Tracer().is_leaf_module(module, "")


def forward_parameters(cls: type[nn.Module]) -> dict[str, Any]:
    """The positional arguments of a class's forward, with their defaults."""
    found = {}
    for parameter in list(inspect.signature(cls.forward).parameters.values())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise Untraceable(f"its forward takes {parameter.replace(annotation=parameter.empty)}")
        if parameter.kind != parameter.KEYWORD_ONLY:
            found[parameter.name] = parameter.default
        elif parameter.default is parameter.empty:
            raise Untraceable(f"its forward takes {parameter.name!r} as keyword only")
    return found


class Untraceable(TraceError):
    """Forward does what a trace cannot record; the text says what, in words about the forward."""


class Somewhere(Untraceable):
    """What shows only after forward has run, so that any part of the module may be the cause."""


class Loops(Untraceable):
    """Forward loops over an argument, or asks for its length."""

    def __init__(self, argument: str) -> None:
        super().__init__(f"its forward loops over {argument!r}")
        self.argument = argument


@dataclass(frozen=True)
class Trace:
    """A module's forward as a graph.

    ``node.meta["owners"]`` holds the modules whose calls recorded the node, outermost first, without the root.
    ``single`` holds the modules that return a single value in every call: a trace may call these as leaves instead,
    and forward notices no difference. If forward ``assigns`` attributes of its module, the graph returns a pair: the
    result, and the attributes' values by their names.
    """

    graph: fx.Graph
    single: set[nn.Module]
    assigns: bool


def trace_forward(root: nn.Module, is_leaf: Callable[[nn.Module], bool], given: Mapping[str, int | None]) -> Trace:
    """``root``'s forward, called with the arguments ``given`` and the others at their defaults, or None.

    A number given for an argument means a list of so many tensors. Raises Untraceable; forward, run on proxies, may
    raise any other error. The error's attribute ``part`` is the part of ``root`` whose forward raised it, if one did.
    """
    graphs = []
    with _unchanged(root), simplified(root), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The two runs differ in every mode that forward might ask for, so equal graphs hold in all modes.
        for training in (False, True):
            for module in root.modules():
                module.training = training  # not train(), which models override to freeze parts
            with torch.set_grad_enabled(not training), _autocast(training):
                tracer = _Tracer(is_leaf, given)
                graphs.append(tracer.trace(root))
    if str(graphs[0]) != str(graphs[1]):
        raise Somewhere("its forward depends on the training, gradient or autocast mode")
    return Trace(graphs[0], tracer.called - tracer.unpacked, tracer.assigns)


class Proxy(fx.Proxy):
    """Stands for a value. Asking for its type raises an error, because a proxy would answer wrongly."""

    @property
    def __class__(self) -> type:  # isinstance reads this
        frame = sys._getframe(1)
        while frame.f_globals.get("__name__") in ("abc", "typing") and frame.f_back:
            frame = frame.f_back
        package = frame.f_globals.get("__name__", "").split(".")[0]
        if package == "torch" and frame.f_code.co_name != "is_tensor":
            return fx.Proxy
        if package == PACKAGE:
            raise Untraceable("its forward calls the ops itself")
        raise Untraceable("its forward asks for the type of a value")

    @__class__.setter
    def __class__(self, value: type) -> None:
        raise TypeError("a proxy keeps its class")

    def __len__(self) -> int:
        raise _looping(self.node)


def _record_in_place(name: str) -> Callable[[Any, Any], Any]:
    """Record ``x += y`` as it is. Plain fx records ``x = x + y``, which does not change other views of x."""
    operation = getattr(operator, f"i{name}")

    def function(x: Any, y: Any) -> Any:
        return operation(x, y)

    def method(self: Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    function.__name__ = function.__qualname__ = f"{name}_"
    setattr(Proxy, f"__i{name}__", method)
    return function


IN_PLACE = {name: _record_in_place(name) for name in ("add", "sub", "mul", "truediv", "pow", "and", "or", "xor")}
"""The functions that graphs call for ``+=`` and its like. Their names end in an underscore, as PyTorch's do."""


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # a buffer that forward writes to shows in the graph

    def __init__(self, is_leaf: Callable[[nn.Module], bool], given: Mapping[str, int | None]) -> None:
        super().__init__()
        self.is_leaf = is_leaf
        self.given = given
        self.assigns = False
        self.owners: list[nn.Module] = []
        self.called: set[nn.Module] = set()
        self.unpacked: set[nn.Module] = set()
        self.context = _context()

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self.is_leaf(m) or is_torch_layer(m)

    def to_bool(self, obj: fx.Proxy) -> bool:
        raise Untraceable("its forward branches on a value")

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        raise _looping(obj.node)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        values = [
            self.argument(name, self.given[name]) if name in self.given else None if default is _EMPTY else default
            for name, default in forward_parameters(type(self.root)).items()
        ]
        before = dict(vars(self.root))
        lists = [(value, list(value)) for value in values if type(value) is list]

        def forward(*args: Any) -> Any:
            result = root_fn(*args)
            if any(_identities(now) != _identities(at_first) for now, at_first in lists):
                raise Untraceable("its forward changes a list that it is given")
            assigned = _taken_back(self.root, before)
            self.assigns = bool(assigned)
            return (result, assigned) if assigned else result

        return forward, [self.root, *values]

    def argument(self, name: str, length: int | None) -> Any:
        proxy = self.create_proxy("placeholder", name, (), {})
        return proxy if length is None else [proxy[i] for i in range(length)]  # type: ignore[index]

    def create_arg(self, a: Any) -> Any:
        # Not isinstance, which would ask a proxy.
        if issubclass(type(a), dict) and type(a) not in (dict, immutable_dict):
            raise Untraceable(f"its forward passes or returns a {type(a).__name__}")
        return super().create_arg(a)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self.owners.append(m)
        try:
            result = super().call_module(m, forward, args, kwargs)
        except Exception as error:
            vars(error).setdefault("part", m)
            raise
        self.owners.pop()
        self.called.add(m)
        if type(result) is not Proxy:
            self.unpacked.add(m)
        return result

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _context() != self.context:
            raise Untraceable("its forward sets autocast or the gradient mode")
        if _in_checkpoint():
            raise Untraceable("its forward checkpoints activations")
        node = super().create_node(*args, **kwargs)
        node.meta["owners"] = tuple(self.owners)
        return node


_EMPTY = inspect.Parameter.empty


def _looping(node: fx.Node) -> Untraceable:
    """The error of a loop over the node's value."""
    while node.target is operator.getitem and isinstance(node.args[1], slice):
        node = node.all_input_nodes[0]
    if node.op == "placeholder":
        return Loops(str(node.target))
    return Untraceable("its forward loops over a result whose length is not known")


def _taken_back(root: nn.Module, before: dict[str, Any]) -> dict[str, Any]:
    """The attributes that forward has set on ``root``, if they hold results and nothing else; they are restored."""
    now = vars(root)
    new = {name: now[name] for name in now if now[name] is not before.get(name) and _holds_results(now[name])}
    for name in new:
        if name in before:
            now[name] = before[name]
        else:
            del now[name]
    return new


def _holds_results(value: Any) -> bool:
    if type(value) in (dict, list, tuple):
        values = value.values() if type(value) is dict else value
        return all(map(_holds_results, values))
    return type(value) is Proxy


def _context() -> tuple[object, ...]:
    autocast = [(torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in AUTOCAST_DEVICES]
    return (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast)


def _in_checkpoint() -> bool:
    frame = sys._getframe(1)
    while frame.f_back:
        if frame.f_code.co_filename == torch.utils.checkpoint.__file__:
            return True
        frame = frame.f_back
    return False


@contextmanager
def _autocast(enabled: bool) -> Iterator[None]:
    """Switch autocast on or off for every device type."""
    before = [torch.is_autocast_enabled(device) for device in AUTOCAST_DEVICES]
    try:
        for device in AUTOCAST_DEVICES:
            torch.set_autocast_enabled(device, enabled)
        yield
    finally:
        for device, was_enabled in zip(AUTOCAST_DEVICES, before, strict=True):
            torch.set_autocast_enabled(device, was_enabled)


@contextmanager
def _unchanged(root: nn.Module) -> Iterator[None]:
    """Restore the attributes of all modules. Raises Untraceable if more than the training flags has changed."""
    modes = [(module, module.training) for module in root.modules()]
    attributes = [value for module in root.modules() for value in (vars(module), *vars(module).values())]
    containers = [(value, value.copy()) for value in attributes if isinstance(value, (dict, list, set))]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        changed = [(now, before) for now, before in containers if _identities(now) != _identities(before)]
        for now, before in changed:
            now.clear()
            now.extend(before) if isinstance(now, list) else now.update(before)
    if changed:
        raise Somewhere("its forward changes the module or makes tensors of its own")


def _identities(container: dict[Any, Any] | list[Any] | set[Any]) -> list[int]:
    return [id(x) for x in container] + ([id(x) for x in container.values()] if isinstance(container, dict) else [])

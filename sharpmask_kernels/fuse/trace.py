"""torch.fx traces that say all that a module does, or are not given.

A plain symbolic trace silently drops what it cannot record: the branch not taken, contexts such as ``no_grad`` and
``autocast``, checkpointing, what forward keeps on the module. Code generated from such a trace would change a
model, so each of these is a :class:`TraceError` here.
"""

from __future__ import annotations

import inspect
import operator
import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.checkpoint
from torch import fx, nn
from torch.fx.proxy import TraceError

DEVICES = ("cpu", "cuda")


def customized(module: nn.Module) -> bool:
    """Whether a call of the module does more than the forward of its class: hooks, or a forward of its own."""
    return bool(
        "forward" in vars(module)
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def is_torch_layer(module: nn.Module) -> bool:
    """Layers of PyTorch itself, and anyone's convolutions: a trace calls them as they are."""
    return isinstance(module, nn.Conv2d) or fx.Tracer().is_leaf_module(module, "")


def forward_parameters(cls: type[nn.Module]) -> dict[str, Any]:
    """The arguments of a class's forward that can be given by position, with their defaults."""
    found = {}
    for parameter in list(inspect.signature(cls.forward).parameters.values())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TraceError(f"its forward takes {parameter.replace(annotation=parameter.empty)}")
        if parameter.kind != parameter.KEYWORD_ONLY:
            found[parameter.name] = parameter.default
        elif parameter.default is parameter.empty:
            raise TraceError(f"its forward takes {parameter.name!r} as keyword only")
    return found


def trace(
    root: nn.Module, is_leaf: Callable[[nn.Module], bool], given: Collection[str]
) -> tuple[fx.Graph, set[nn.Module]]:
    """The graph of ``root``'s forward called with the arguments ``given``, the others at their defaults.

    ``node.meta["owners"]`` holds the modules whose call a node belongs to, outermost first, without the root. Also
    gives the modules whose every call had one value as its result: as leaves they would look the same to forward.
    Raises TraceError, or whatever forward raises when it meets a proxy.
    """
    graphs = []
    with _unchanged(root), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The two runs differ in all that forward might ask or set: a graph that holds for both holds always.
        for training in (False, True):
            for module in root.modules():
                module.training = training  # not train(): models override it, to freeze parts or to return nothing
            with torch.set_grad_enabled(not training), _autocast(training):
                tracer = _Tracer(is_leaf, given)
                graphs.append(tracer.trace(root))
    if str(graphs[0]) != str(graphs[1]):
        raise TraceError("its forward depends on the training, gradient or autocast mode")
    return graphs[0], tracer.called - tracer.unpacked


class Proxy(fx.Proxy):
    """Stands for a value; refuses the question for its type, which it would answer wrongly."""

    @property
    def __class__(self) -> type:  # what isinstance asks
        frame = sys._getframe(1)
        while frame.f_globals.get("__name__") in ("abc", "typing") and frame.f_back:
            frame = frame.f_back
        package = frame.f_globals.get("__name__", "").split(".")[0]
        if package == "torch" and frame.f_code.co_name != "is_tensor":
            return fx.Proxy
        if package == __name__.split(".")[0]:
            raise TraceError("its forward calls the ops itself")
        raise TraceError("its forward asks for the type of a value")

    @__class__.setter
    def __class__(self, value: type) -> None:
        raise TypeError("a proxy keeps its class")


def _record_in_place(name: str) -> Callable[[Any, Any], Any]:
    """Record ``x += y`` as it is; fx makes ``x = x + y`` of it, which leaves other names of x unchanged."""
    operation = getattr(operator, f"i{name}")

    def function(x: Any, y: Any) -> Any:
        return operation(x, y)

    def method(self: Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    function.__name__ = function.__qualname__ = f"{name}_"
    setattr(Proxy, f"__i{name}__", method)
    return function


IN_PLACE = {name: _record_in_place(name) for name in ("add", "sub", "mul", "truediv", "pow", "and", "or", "xor")}
"""What stands in graphs for ``+=`` and its like; the functions' names end in an underscore, as PyTorch's do."""


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # so that a buffer that forward writes to shows in the graph

    def __init__(self, is_leaf: Callable[[nn.Module], bool], given: Collection[str]) -> None:
        super().__init__()
        self.is_leaf = is_leaf
        self.given = given
        self.owners: list[nn.Module] = []
        self.called: set[nn.Module] = set()
        self.unpacked: set[nn.Module] = set()
        self.context = _context()

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self.is_leaf(m) or is_torch_layer(m)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        values = [
            self.create_proxy("placeholder", name, (), {}) if name in self.given else default
            for name, default in forward_parameters(type(self.root)).items()
        ]
        return root_fn, [self.root, *values]

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self.owners.append(m)
        result = super().call_module(m, forward, args, kwargs)
        self.owners.pop()
        self.called.add(m)
        if type(result) is not Proxy:
            self.unpacked.add(m)
        return result

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _context() != self.context:
            raise TraceError("its forward sets autocast or the gradient mode")
        if _in_checkpoint():
            raise TraceError("its forward checkpoints activations")
        node = super().create_node(*args, **kwargs)
        node.meta["owners"] = tuple(self.owners)
        return node


def _context() -> tuple[object, ...]:
    autocast = [(torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in DEVICES]
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
    """Autocast on or off on every device, also on one that this machine lacks."""
    before = [torch.is_autocast_enabled(device) for device in DEVICES]
    try:
        for device in DEVICES:
            torch.set_autocast_enabled(device, enabled)
        yield
    finally:
        for device, was in zip(DEVICES, before, strict=True):
            torch.set_autocast_enabled(device, was)


@contextmanager
def _unchanged(root: nn.Module) -> Iterator[None]:
    """Puts back whatever happens to attributes, and raises TraceError if it was more than the training flags."""
    modes = [(module, module.training) for module in root.modules()]
    held = [box for module in root.modules() for box in (vars(module), *vars(module).values())]
    boxes = [(box, box.copy()) for box in held if isinstance(box, (dict, list, set))]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        changed = [(box, before) for box, before in boxes if _identities(box) != _identities(before)]
        for box, before in changed:
            box.clear()
            box.extend(before) if isinstance(box, list) else box.update(before)
    if changed:
        raise TraceError("its forward changes the module or makes tensors of its own")


def _identities(box: dict[Any, Any] | list[Any] | set[Any]) -> list[int]:
    return [id(x) for x in box] + ([id(x) for x in box.values()] if isinstance(box, dict) else [])

"""torch.fx traces that are complete: a forward that a trace cannot record in full raises an error.

A plain symbolic trace silently drops what it cannot record: the branch not taken, contexts such as ``no_grad`` and
``autocast``, checkpointing, attributes that forward sets on the module. Code generated from such a trace would
change a model, so each of these raises a :class:`TraceError` here.
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
            raise TraceError(f"its forward takes {parameter.replace(annotation=parameter.empty)}")
        if parameter.kind != parameter.KEYWORD_ONLY:
            found[parameter.name] = parameter.default
        elif parameter.default is parameter.empty:
            raise TraceError(f"its forward takes {parameter.name!r} as keyword only")
    return found


def trace_forward(
    root: nn.Module, is_leaf: Callable[[nn.Module], bool], given: Collection[str]
) -> tuple[fx.Graph, set[nn.Module]]:
    """The graph of ``root``'s forward, called with the arguments ``given`` and the others at their defaults.

    ``node.meta["owners"]`` holds the modules whose calls recorded the node, outermost first, without the root.
    The second result holds the modules that return a single value in every call: a trace may call these as leaves
    instead, and forward notices no difference. Raises TraceError, or any error that forward raises on a proxy.
    """
    graphs = []
    with _unchanged(root), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The two runs differ in every mode that forward might ask for, so equal graphs hold in all modes.
        for training in (False, True):
            for module in root.modules():
                module.training = training  # not train(), which models override to freeze parts
            with torch.set_grad_enabled(not training), _autocast(training):
                tracer = _Tracer(is_leaf, given)
                graphs.append(tracer.trace(root))
    if str(graphs[0]) != str(graphs[1]):
        raise TraceError("its forward depends on the training, gradient or autocast mode")
    return graphs[0], tracer.called - tracer.unpacked


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
            raise TraceError("its forward calls the ops itself")
        raise TraceError("its forward asks for the type of a value")

    @__class__.setter
    def __class__(self, value: type) -> None:
        raise TypeError("a proxy keeps its class")


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
    """Restore the attributes of all modules. Raises TraceError if more than the training flags has changed."""
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
        raise TraceError("its forward changes the module or makes tensors of its own")


def _identities(container: dict[Any, Any] | list[Any] | set[Any]) -> list[int]:
    return [id(x) for x in container] + ([id(x) for x in container.values()] if isinstance(container, dict) else [])

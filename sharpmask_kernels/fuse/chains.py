"""Chains that one call of :mod:`.run` replaces, from a convolution or a sum to its activation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from ..hooks import customized
from .graph import RELU, Chain, argument, calls, module_of
from .run import normalised, upsampled_shape, with_same_average

DROPOUT = (nn.Dropout, nn.Dropout2d)
FUNCTIONS = {F.elu: ("elu", "alpha", 1), F.leaky_relu: ("leaky_relu", "negative_slope", 0.01), F.silu: ("silu", "", 0)}
LAYERS = {
    nn.ReLU: ("relu", "", 0),
    nn.ELU: ("elu", "alpha", 1),
    nn.LeakyReLU: ("leaky_relu", "negative_slope", 0.01),
    nn.SiLU: ("silu", "", 0),
}
"""The activations of the ops: their names, and the option that must have this value."""


@dataclass
class CallChain:
    """Nodes from a convolution (or a sum) to its activation, which one call replaces, upsampling and all."""

    name: str
    nodes: list[fx.Node]  # in the graph's order
    path: list[fx.Node]  # from the upsampling on; these go where nothing else needs them
    function: Callable[..., Tensor]
    inputs: tuple[Any, ...]  # nodes and what holds nodes
    modules: dict[str, Any]  # names of modules, as keyword arguments
    options: dict[str, Any]
    averages: tuple[fx.Node, ...] = ()  # nodes that average the upsampled map; they may average the small one instead

    def replace(self, graph: fx.Graph) -> None:
        """Put the call into the graph and erase the nodes that it replaces."""
        with graph.inserting_before(self.nodes[0]):
            modules = {name: _attribute(graph, target) for name, target in self.modules.items()}
            result = graph.call_function(self.function, self.inputs, {**modules, **self.options})
        self.nodes[-1].replace_all_uses_with(result)
        for node in reversed(self.nodes):
            graph.erase_node(node)
        if self.path:
            self._read_of_small(graph)
        for node in reversed(self.path):
            if not node.users:
                graph.erase_node(node)

    def _read_of_small(self, graph: fx.Graph) -> None:
        """Compute the upsampled map's shape and averages from the small map, so that the map need not be made."""
        up = self.path[0]
        mask, size = self.inputs[0], self.inputs[1]
        for node in set(self.averages).intersection(up.users):
            with graph.inserting_before(node):
                same = graph.call_function(with_same_average, (mask, size), {"mode": self.options["mode"]})
            node.replace_input_with(up, same)
        for node in [node for node in up.users if is_shape(node)]:
            with graph.inserting_before(node):
                dims = node.args[1:] if node.op == "call_method" else ()
                shape = graph.call_function(upsampled_shape, (mask, size, *dims), dict(node.kwargs))
            node.replace_all_uses_with(shape)
            graph.erase_node(node)


def _attribute(graph: fx.Graph, target: Any) -> Any:
    if isinstance(target, tuple):
        return tuple(_attribute(graph, each) for each in target)
    return target if target is None else graph.get_attr(target)


def is_shape(node: fx.Node) -> bool:
    """Whether the node reads nothing but its argument's shape."""
    return (node.op == "call_method" and node.target == "size") or (
        node.target is getattr and node.args[1] in ("shape", "ndim")
    )


@dataclass
class Tail:
    """What follows a convolution or a sum: batch normalisation, dropout, an activation; each may be missing."""

    nodes: list[fx.Node]
    norm: str | None = None
    dropouts: tuple[str, ...] = ()
    activation: str = "none"
    passed: list[fx.Node] = field(default_factory=list)

    @staticmethod
    def of(root: nn.Module, node: fx.Node) -> Tail:
        tail = Tail([node])
        for user in _line(node):
            module = module_of(root, user)
            if module is not None and customized(module):
                break
            if type(module) is nn.BatchNorm2d and len(tail.nodes) == 1 and isinstance(module_of(root, node), nn.Conv2d):
                tail.norm = str(user.target)
                tail.nodes.append(user)
            elif type(module) in (*DROPOUT, nn.Identity):
                tail.passed.append(user)
            else:
                tail.activate(root, user, activation_of(user, module))
                break
        return tail

    def activate(self, root: nn.Module, user: fx.Node, activation: str | None) -> None:
        if activation is not None:
            self.activation = activation
            self.nodes += [*self.passed, user]
            self.dropouts = tuple(str(n.target) for n in self.passed if type(module_of(root, n)) in DROPOUT)


def _line(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes after ``node`` for as long as each has a single user, which reads it first."""
    while len(node.users) == 1:
        (user,) = node.users
        if user.op == "output" or argument(user, 0, "input") is not node:
            return
        yield user
        node = user


def activation_of(node: fx.Node, module: nn.Module | None) -> str | None:
    """The op's name of the activation that the node calls, or None."""
    if calls(node, RELU):
        return "relu"
    if type(module) in LAYERS:
        name, option, value = LAYERS[type(module)]
        return name if not option or getattr(module, option) == value else None
    if node.op == "call_function" and node.target in FUNCTIONS:
        name, option, value = FUNCTIONS[node.target]
        return name if not option or argument(node, 1, option, value) == value else None
    return None


def normalised_after(root: nn.Module, chains: Sequence[Chain]) -> list[CallChain]:
    """The convolutions with batch normalisation that read nothing but the result of a chain, or of one another."""
    found: list[CallChain] = []
    taken = {node for chain in chains for node in chain.nodes}
    ends = [chain.nodes[-1] for chain in chains if isinstance(chain, CallChain)]
    for end in ends:  # which grows
        for node in list(end.users):
            conv = module_of(root, node)
            if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros" or customized(conv) or node in taken:
                continue
            tail = Tail.of(root, node)
            if tail.norm is not None and not parametrize.is_parametrized(conv):
                taken.update(tail.nodes)
                ends.append(tail.nodes[-1])
                modules = {"conv": str(node.target), "norm": tail.norm, "dropouts": tail.dropouts}
                options = {"activation": tail.activation}
                found.append(CallChain(str(node.target), tail.nodes, [], normalised, (end,), modules, options))
    return found

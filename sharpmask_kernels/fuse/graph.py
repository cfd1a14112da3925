"""What the nodes of a torch.fx graph compute, and which of them may share or change memory."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils import parametrize

from ..checks import PADDING_MODES
from ..hooks import customized
from .trace import IN_PLACE, is_torch_layer

RELU = (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")
CONCATENATE = (torch.cat, torch.concat, torch.concatenate)
ADD_IN_PLACE = (IN_PLACE["add"], "add_")
ADD = (operator.add, torch.add, "add", *ADD_IN_PLACE)
UPSAMPLE = (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
UPSAMPLE_MODES = {"bilinear": "bilinear", "nearest": "nearest", "nearest-exact": "nearest"}  # for x2 these two agree
SAME_STORAGE = (nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout2d)
"""Layers that may return their input, or a view of it."""


class Differs(Exception):
    """A chain is not one that an op computes; the text says why."""


class Chain(Protocol):
    """Nodes of a graph that one op replaces."""

    @property
    def name(self) -> str:
        """The name of its convolution. Where a sum takes the convolution's place: of what it adds."""

    @property
    def nodes(self) -> list[fx.Node]:
        """The nodes that go."""

    def replace(self, graph: fx.Graph) -> None:
        """Put the op into the graph and erase the nodes that it replaces."""


def in_order(graph: fx.Graph, chains: Sequence[Chain]) -> list[Chain]:
    """The chains in the order in which their results are made."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    return sorted(chains, key=lambda chain: max(map(order.__getitem__, chain.nodes)))


def module_of(root: nn.Module, node: Any) -> nn.Module | None:
    """The module that the node calls."""
    if isinstance(node, fx.Node) and node.op == "call_module":
        return root.get_submodule(str(node.target))
    return None


def calls(node: Any, functions: tuple[object, ...]) -> bool:
    """Whether the node calls one of these functions, or methods by name."""
    return isinstance(node, fx.Node) and node.op in ("call_function", "call_method") and node.target in functions


def is_relu(root: nn.Module, node: Any) -> bool:
    return calls(node, RELU) or type(module_of(root, node)) is nn.ReLU


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def conv_problem(conv: nn.Conv2d, padding: int = 1, modes: tuple[str, ...] = PADDING_MODES) -> str | None:
    """Why the ops cannot compute ``conv``, as the predicate of a sentence about it; None if they can."""
    if parametrize.is_parametrized(conv):
        return "is parametrized"
    if type(conv) is not nn.Conv2d:
        return f"is a {type(conv).__name__}, not a plain Conv2d"
    options = {"kernel_size": (3, 3), "stride": (1, 1), "dilation": (1, 1), "groups": 1}
    for option, wanted in options.items():
        if (actual := getattr(conv, option)) != wanted:
            return f"has {option} {actual}, not {wanted}"
    if conv.padding not in ((padding, padding), *(["same"] if padding == 1 else [])):
        return f"has padding {conv.padding!r}, not {padding}"
    if conv.padding_mode not in modes:
        return f"has padding_mode {conv.padding_mode!r}, not " + " or ".join(map(repr, modes))
    return None


@dataclass
class Upsampling:
    """An upsampling, as its call says."""

    mode: str = ""  # "bilinear", "nearest", or empty for any other
    doubles: bool = False  # by the factor 2, in any mode
    problem: str | None = None  # why an op that ends in an upsampling by 2 cannot compute it
    size: Any = None  # the size asked for, in place of a factor
    torch_mode: str = ""  # PyTorch's name of the mode
    align_corners: bool | None = None
    antialias: bool = False


def upsampling_of(root: nn.Module, node: fx.Node) -> Upsampling | None:
    """The upsampling that the node computes, or None."""
    module = module_of(root, node)
    if isinstance(module, nn.ConvTranspose2d):
        problem = f"{type(module).__name__} stands in place of the upsampling"
        return Upsampling(doubles=module.stride == (2, 2), problem=problem)
    if type(module) in UPSAMPLE:
        options = vars(module)
    elif node.target is F.interpolate:
        options = dict(node.kwargs)
    else:
        return None
    size, factor, mode = options.get("size"), options.get("scale_factor"), options.get("mode")
    found = Upsampling(UPSAMPLE_MODES.get(str(mode), ""), size is None and factor in (2, (2, 2), [2, 2]))
    found.size, found.torch_mode = size, str(mode)
    found.align_corners, found.antialias = options.get("align_corners"), bool(options.get("antialias"))
    if module is not None and customized(module):
        found.problem = f"{node.target!r} has hooks or a forward of its own"
    elif size is not None:
        found.problem = "the upsampling is to a size, not by the factor 2"
    elif not found.doubles:
        found.problem = f"the upsampling is by {factor}, not by 2"
    elif not found.mode:
        found.problem = f"the upsampling is {str(mode)!r}, not " + " or ".join(map(repr, ("bilinear", "nearest")))
    elif found.align_corners:
        found.problem = "the upsampling has align_corners=True"
    elif found.antialias:
        found.problem = "the upsampling has antialias=True"
    return found


class Flow:
    """The graph of a module's forward, read from one upsampling on."""

    def __init__(self, root: nn.Module, graph: fx.Graph, up: fx.Node) -> None:
        self.root = root
        self.order = list(graph.nodes)
        self.up = up
        self.nodes = [up]  # those that the op replaces
        owner = up.meta["owners"][-1] if up.meta["owners"] else root
        self.name = next(name for name, module in root.named_modules() if module is owner)

    def described(self, node: Any) -> str:
        if not isinstance(node, fx.Node):
            return str(node)
        if (module := module_of(self.root, node)) is not None:
            return type(module).__name__ + (" with hooks" if customized(module) else "")
        if node.op == "call_function":
            return getattr(node.target, "__name__", str(node.target))
        return {"placeholder": "an argument", "get_attr": "a parameter"}.get(node.op, str(node.target))

    # The op reads its inputs later than the calls that it replaces, so they must not change in between.

    def may_change(self, source: fx.Node, start: fx.Node, stop: fx.Node) -> bool:
        """Whether a node between ``start`` and ``stop`` might write to ``source``."""
        between = self.order[self.order.index(start) + 1 : self.order.index(stop)]
        storage = set(self.storage(source))
        return any(
            storage.intersection(self.storage(written))
            for node in between
            if node not in self.nodes and self.writes(node)
            for written in node.all_input_nodes
        )

    def overwrites(self, total: fx.Node) -> bool:
        """Whether ``total`` is an in-place sum into a tensor that other nodes can see."""
        target = total.all_input_nodes[0]
        own = target.op.startswith("call") and len(target.users) == 1 and list(self.storage(target)) == [target]
        return calls(total, ADD_IN_PLACE) and not own

    def storage(self, node: Any) -> Iterator[fx.Node]:
        """The node, and the nodes whose memory it may share."""
        while isinstance(node, fx.Node):
            yield node
            module = module_of(self.root, node)
            fresh = module is not None and is_torch_layer(module) and not isinstance(module, SAME_STORAGE)
            node = None if fresh and not self.writes(node) else argument(node, 0, "input")

    def writes(self, node: fx.Node) -> bool:
        """Whether the node may change its inputs. A module that the trace did not look into may."""
        if node.op == "call_module":
            module = module_of(self.root, node)
            return module is not None and (getattr(module, "inplace", False) or not is_torch_layer(module))
        if node.op not in ("call_function", "call_method"):
            return False
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        in_place = name.endswith("_") and not name.endswith("__")
        return in_place or bool(node.kwargs.get("inplace")) or "out" in node.kwargs

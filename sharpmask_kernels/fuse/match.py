"""Find refinement modules in a torch.fx graph, name what keeps a near miss from being one, and put the op in place."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from ..checks import PADDING_MODES
from ..functional import add_upsample, merge_upsample, refine
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
    """A chain is no refinement module; the text says why."""


@dataclass
class Chain:
    """A refinement module in a graph, and the op that computes the same. Its name is its convolution's."""

    name: str
    nodes: list[fx.Node]  # the nodes that the op replaces, the upsampling first
    place: fx.Node  # where the op reads its inputs
    function: Callable[..., Tensor]
    inputs: tuple[fx.Node, ...]
    convs: tuple[tuple[str, nn.Conv2d], ...]
    upsample: str
    mask_first: bool = False

    def replace(self, graph: fx.Graph) -> None:
        """Put the op into the graph and erase the nodes that it replaces."""
        with graph.inserting_before(self.place):
            arguments = [*self.inputs, *(p for name, conv in self.convs for p in _parameters(graph, name, conv))]
            if self.mask_first:
                arguments[-2] = graph.call_function(mask_last, (arguments[-2], self.inputs[1]))
            modes: dict[str, Any] = {"upsample": self.upsample, "padding_mode": self.convs[-1][1].padding_mode}
            result = graph.call_function(self.function, tuple(arguments), modes)
        self.nodes[0].replace_all_uses_with(result)
        for node in reversed([node for node in graph.nodes if node in self.nodes]):
            graph.erase_node(node)


def _parameters(graph: fx.Graph, name: str, conv: nn.Conv2d) -> tuple[fx.Node, fx.Node | None]:
    return graph.get_attr(f"{name}.weight"), None if conv.bias is None else graph.get_attr(f"{name}.bias")


def mask_last(weight: Tensor, mask: Tensor) -> Tensor:
    """The weight of conv(cat[mask, skip]), reordered for conv(cat[skip, mask])."""
    channels = mask.shape[1]
    return torch.cat([weight[:, channels:], weight[:, :channels]], dim=1)


def add_upsample_broadcast(
    horizontal: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, *, upsample: str, padding_mode: str
) -> Tensor:
    """:func:`add_upsample` with a sum that broadcasts as PyTorch's does."""
    shape = torch.Size((mask.shape[0], weight.shape[0], *mask.shape[2:]))
    if torch.broadcast_shapes(horizontal.shape, shape) == shape:
        horizontal = horizontal.expand(shape)
        return add_upsample(horizontal, mask, weight, bias, upsample=upsample, padding_mode=padding_mode)
    if padding_mode == "replicate":
        mask = F.pad(mask, (1, 1, 1, 1), mode=padding_mode)
    vertical = F.conv2d(mask, weight, bias, padding=1 if padding_mode == "zeros" else 0)
    return F.interpolate(F.relu(horizontal + vertical), scale_factor=2, mode=upsample)


def conv_problem(conv: nn.Conv2d, padding: int = 1) -> str | None:
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
    if conv.padding_mode not in PADDING_MODES:
        return f"has padding_mode {conv.padding_mode!r}, not " + " or ".join(map(repr, PADDING_MODES))
    return None


def find(root: nn.Module, graph: fx.Graph) -> tuple[list[Chain], dict[str, str]]:
    """The refinement modules in the graph of ``root``, and the near misses as {module's name: what differs}."""
    chains: list[Chain] = []
    missed: dict[str, str] = {}
    for node in graph.nodes:
        if (upsampling := _upsampling(root, node)) is not None:
            search = _Search(root, graph, node)
            try:
                chain = search.chain(upsampling.mode)
            except Differs as reason:
                if upsampling.doubles:
                    _note(missed, search.name, str(reason))
                continue
            if upsampling.problem is None:
                chains.append(chain)
            else:
                _note(missed, chain.name, upsampling.problem)
    return chains, missed


def _note(missed: dict[str, str], name: str, reason: str) -> None:
    known = missed.get(name, reason)
    missed[name] = known if reason in known else f"{known}; {reason}"


@dataclass
class _Upsampling:
    mode: str = ""  # "bilinear", "nearest", or empty for any other
    doubles: bool = False  # by the factor 2, in any mode
    problem: str | None = None  # why the ops cannot compute it


def _upsampling(root: nn.Module, node: fx.Node) -> _Upsampling | None:
    module = _module(root, node)
    if isinstance(module, nn.ConvTranspose2d):
        return _Upsampling(problem=f"{type(module).__name__} stands in place of the upsampling")
    if type(module) in UPSAMPLE:
        options = vars(module)
    elif node.target is F.interpolate:
        options = dict(node.kwargs)
    else:
        return None
    size, factor, mode = options.get("size"), options.get("scale_factor"), str(options.get("mode"))
    found = _Upsampling(UPSAMPLE_MODES.get(mode, ""), size is None and factor in (2, (2, 2), [2, 2]))
    if module is not None and customized(module):
        found.problem = f"{node.target!r} has hooks or a forward of its own"
    elif size is not None:
        found.problem = "the upsampling is to a size, not by the factor 2"
    elif not found.doubles:
        found.problem = f"the upsampling is by {factor}, not by 2"
    elif not found.mode:
        found.problem = f"the upsampling is {mode!r}, not " + " or ".join(map(repr, ("bilinear", "nearest")))
    elif options.get("align_corners"):
        found.problem = "the upsampling has align_corners=True"
    elif options.get("antialias"):
        found.problem = "the upsampling has antialias=True"
    return found


class _Search:
    """Follows the graph back from one upsampling to the inputs of its refinement module."""

    def __init__(self, root: nn.Module, graph: fx.Graph, up: fx.Node) -> None:
        self.root = root
        self.order = list(graph.nodes)
        self.up = up
        self.nodes = [up]
        owner = up.meta["owners"][-1] if up.meta["owners"] else root
        self.name = next(name for name, module in root.named_modules() if module is owner)

    def chain(self, upsample: str) -> Chain:
        """The refinement module that ends in the upsampling. Raises Differs at the first difference."""
        relu = self.source(self.up, "upsampling")
        if not _is_relu(self.root, relu):
            raise Differs(f"{self.described(relu)} stands before the upsampling, not a ReLU")
        self.take(relu, "the upsampling's input")
        merge = self.source(relu, "ReLU")
        if _calls(merge, ADD):
            return self.added(merge, upsample)
        if isinstance(_module(self.root, merge), nn.Conv2d):
            return self.concatenated(merge, upsample)
        raise Differs(f"{self.described(merge)} stands before the ReLU, not a convolution or a sum")

    def concatenated(self, merge: fx.Node, upsample: str) -> Chain:
        conv = self.take_conv(merge)
        joined = self.source(merge, "convolution")
        if not _calls(joined, CONCATENATE):
            raise Differs(f"{self.described(joined)} stands before the convolution, not a concatenation")
        tensors = _argument(joined, 0, "tensors")
        dim = joined.kwargs.get("axis", _argument(joined, 1, "dim", 0))
        if dim not in (1, -3):
            raise Differs(f"the concatenation is along dimension {dim}, not 1")
        if not isinstance(tensors, (list, tuple)) or len(tensors) != 2:
            count = len(tensors) if isinstance(tensors, (list, tuple)) else "a list of"
            raise Differs(f"the concatenation is of {count} tensors, not of 2")
        self.take(joined, "the concatenation")
        first, second = tensors
        merge_conv = (self.name, conv)
        for skip, mask in ((first, second), (second, first)):
            if skip is not mask and (found := self.skip(skip, joined, conv.padding_mode)):
                feature, skip_name, skip_conv = found
                convs = ((skip_name, skip_conv), merge_conv)
                return Chain(self.name, self.nodes, joined, refine, (feature, mask), convs, upsample, mask is first)
        return Chain(self.name, self.nodes, joined, merge_upsample, (first, second), (merge_conv,), upsample)

    def skip(self, relu: fx.Node, joined: fx.Node, padding_mode: str) -> tuple[fx.Node, str, nn.Conv2d] | None:
        """The feature, and the skip's convolution with its name, if ``refine`` can compute the skip.

        It can if nothing else uses the skip and its padding mode is that of the merging convolution.
        """
        kept, name = list(self.nodes), self.name
        try:
            if not _is_relu(self.root, relu):
                raise Differs
            self.take(relu, "the skip")
            node = self.source(relu, "ReLU")
            conv = self.take_conv(node)
            feature = _argument(node, 0, "input")
            if conv.padding_mode != padding_mode or self.may_change(feature, node, joined):
                raise Differs
            return feature, self.name, conv
        except Differs:
            self.nodes = kept
            return None
        finally:
            self.name = name

    def added(self, total: fx.Node, upsample: str) -> Chain:
        first, second = _argument(total, 0, "input"), _argument(total, 1, "other")
        if total.kwargs.get("alpha", 1) != 1:
            raise Differs(f"the sum has alpha {total.kwargs['alpha']}")
        reason = f"a sum of {self.described(first)} and {self.described(second)} stands before the ReLU"
        self.take(total, "the sum")
        for node, horizontal in ((second, first), (first, second)):
            if not isinstance(_module(self.root, node), nn.Conv2d) or not isinstance(horizontal, fx.Node):
                continue
            if first is second:
                raise Differs("the sum is of one convolution with itself")
            kept = list(self.nodes)
            try:
                conv = self.take_conv(node)
                mask = _argument(node, 0, "input")
                if self.may_change(mask, node, total) or (horizontal is first and self.overwrites(total)):
                    raise Differs("the sum or its mask is changed in place")
                convs = ((self.name, conv),)
                return Chain(self.name, self.nodes, total, add_upsample_broadcast, (horizontal, mask), convs, upsample)
            except Differs as differs:
                self.nodes, reason = kept, str(differs)
        raise Differs(reason)

    def take_conv(self, node: fx.Node) -> nn.Conv2d:
        conv = _module(self.root, node)
        if not isinstance(conv, nn.Conv2d):
            raise Differs(f"{self.described(node)} stands before the ReLU, not a convolution")
        self.name = str(node.target)
        if problem := conv_problem(conv):
            raise Differs(f"{self.name!r} {problem}")
        self.take(node, "the convolution's result")
        return conv

    def take(self, node: fx.Node, what: str) -> None:
        """Make the node part of the chain. Raises Differs if its result is used elsewhere or its call has hooks."""
        if len(node.users) != 1:
            raise Differs(f"{what} is used elsewhere too")
        if (module := _module(self.root, node)) is not None and customized(module):
            raise Differs(f"{node.target!r} has hooks or a forward of its own")
        self.nodes.append(node)

    def source(self, node: fx.Node, what: str) -> fx.Node:
        """The input of the node, which is a ``what``; skips nn.Identity."""
        found = _argument(node, 0, "input")
        while type(_module(self.root, found)) is nn.Identity:
            self.take(found, f"the {what}'s input")
            found = _argument(found, 0, "input")
        return found

    def described(self, node: Any) -> str:
        if not isinstance(node, fx.Node):
            return str(node)
        if (module := _module(self.root, node)) is not None:
            return type(module).__name__ + (" with hooks" if customized(module) else "")
        if node.op == "call_function":
            return getattr(node.target, "__name__", str(node.target))
        return {"placeholder": "an argument", "get_attr": "a parameter"}.get(node.op, str(node.target))

    # The op reads its inputs later than the convolution that it replaces, so they must not change in between.

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
        return _calls(total, ADD_IN_PLACE) and not own

    def storage(self, node: Any) -> Iterator[fx.Node]:
        """The node, and the nodes whose memory it may share."""
        while isinstance(node, fx.Node):
            yield node
            module = _module(self.root, node)
            fresh = module is not None and is_torch_layer(module) and not isinstance(module, SAME_STORAGE)
            node = None if fresh and not self.writes(node) else _argument(node, 0, "input")

    def writes(self, node: fx.Node) -> bool:
        """Whether the node may change its inputs. A module that the trace did not look into may."""
        if node.op == "call_module":
            module = _module(self.root, node)
            return module is not None and (getattr(module, "inplace", False) or not is_torch_layer(module))
        if node.op not in ("call_function", "call_method"):
            return False
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        in_place = name.endswith("_") and not name.endswith("__")
        return in_place or bool(node.kwargs.get("inplace")) or "out" in node.kwargs


def _module(root: nn.Module, node: Any) -> nn.Module | None:
    if isinstance(node, fx.Node) and node.op == "call_module":
        return root.get_submodule(str(node.target))
    return None


def _calls(node: Any, functions: tuple[object, ...]) -> bool:
    """Whether the node calls one of these functions, or methods by name."""
    return isinstance(node, fx.Node) and node.op in ("call_function", "call_method") and node.target in functions


def _is_relu(root: nn.Module, node: Any) -> bool:
    return _calls(node, RELU) or type(_module(root, node)) is nn.ReLU


def _argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)

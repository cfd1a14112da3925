"""Refinement modules that end in their upsampling: concatenate or add, convolve, ReLU, upsample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..functional import add_upsample, merge_upsample, refine
from ..hooks import customized
from .graph import ADD, CONCATENATE, Differs, Flow, argument, calls, conv_problem, is_relu, module_of


@dataclass
class LastChain:
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


class UpsampleLast(Flow):
    """Follows the graph back from one upsampling to the inputs of its refinement module."""

    def chain(self, upsample: str) -> LastChain:
        """The refinement module that ends in the upsampling. Raises Differs at the first difference."""
        relu = self.source(self.up, "upsampling")
        if not is_relu(self.root, relu):
            raise Differs(f"{self.described(relu)} stands before the upsampling, not a ReLU")
        self.take(relu, "the upsampling's input")
        merge = self.source(relu, "ReLU")
        if calls(merge, ADD):
            return self.added(merge, upsample)
        if isinstance(module_of(self.root, merge), nn.Conv2d):
            return self.concatenated(merge, upsample)
        raise Differs(f"{self.described(merge)} stands before the ReLU, not a convolution or a sum")

    def concatenated(self, merge: fx.Node, upsample: str) -> LastChain:
        conv = self.take_conv(merge)
        joined = self.source(merge, "convolution")
        if not calls(joined, CONCATENATE):
            raise Differs(f"{self.described(joined)} stands before the convolution, not a concatenation")
        tensors = argument(joined, 0, "tensors")
        dim = joined.kwargs.get("axis", argument(joined, 1, "dim", 0))
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
                return LastChain(self.name, self.nodes, joined, refine, (feature, mask), convs, upsample, mask is first)
        return LastChain(self.name, self.nodes, joined, merge_upsample, (first, second), (merge_conv,), upsample)

    def skip(self, relu: fx.Node, joined: fx.Node, padding_mode: str) -> tuple[fx.Node, str, nn.Conv2d] | None:
        """The feature, and the skip's convolution with its name, if ``refine`` can compute the skip.

        It can if nothing else uses the skip and its padding mode is that of the merging convolution.
        """
        kept, name = list(self.nodes), self.name
        try:
            if not is_relu(self.root, relu):
                raise Differs
            self.take(relu, "the skip")
            node = self.source(relu, "ReLU")
            conv = self.take_conv(node)
            feature = argument(node, 0, "input")
            if conv.padding_mode != padding_mode or self.may_change(feature, node, joined):
                raise Differs
            return feature, self.name, conv
        except Differs:
            self.nodes = kept
            return None
        finally:
            self.name = name

    def added(self, total: fx.Node, upsample: str) -> LastChain:
        first, second = argument(total, 0, "input"), argument(total, 1, "other")
        if total.kwargs.get("alpha", 1) != 1:
            raise Differs(f"the sum has alpha {total.kwargs['alpha']}")
        reason = f"a sum of {self.described(first)} and {self.described(second)} stands before the ReLU"
        self.take(total, "the sum")
        for node, horizontal in ((second, first), (first, second)):
            if not isinstance(module_of(self.root, node), nn.Conv2d) or not isinstance(horizontal, fx.Node):
                continue
            if first is second:
                raise Differs("the sum is of one convolution with itself")
            kept = list(self.nodes)
            try:
                conv = self.take_conv(node)
                mask = argument(node, 0, "input")
                if self.may_change(mask, node, total) or (horizontal is first and self.overwrites(total)):
                    raise Differs("the sum or its mask is changed in place")
                convs = ((self.name, conv),)
                return LastChain(
                    self.name, self.nodes, total, add_upsample_broadcast, (horizontal, mask), convs, upsample
                )
            except Differs as differs:
                self.nodes, reason = kept, str(differs)
        raise Differs(reason)

    def take_conv(self, node: fx.Node) -> nn.Conv2d:
        conv = module_of(self.root, node)
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
        if (module := module_of(self.root, node)) is not None and customized(module):
            raise Differs(f"{node.target!r} has hooks or a forward of its own")
        self.nodes.append(node)

    def source(self, node: fx.Node, what: str) -> fx.Node:
        """The input of the node, which is a ``what``; skips nn.Identity."""
        found = argument(node, 0, "input")
        while type(module_of(self.root, found)) is nn.Identity:
            self.take(found, f"the {what}'s input")
            found = argument(found, 0, "input")
        return found

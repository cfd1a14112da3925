"""Sums over a stack of maps, written out as additions, which the search for chains knows."""

from __future__ import annotations

import operator

import torch
from torch import Tensor, fx, nn

from .graph import argument, calls, upsampling_of

SUM = (torch.sum, "sum")


def unstack(root: nn.Module, graph: fx.Graph) -> None:
    """Write ``stack([a, b, ...]).sum(0)`` as additions wherever one of the maps was upsampled.

    What was not upsampled comes first, so that each upsampled map is added to a map that exists.
    """
    for total in list(graph.nodes):
        stack = argument(total, 0, "input") if _sums_first(total) else None
        if not isinstance(stack, fx.Node) or stack.target is not torch.stack or len(stack.users) != 1:
            continue
        maps = argument(stack, 0, "tensors")
        if argument(stack, 1, "dim", 0) != 0 or not isinstance(maps, (list, tuple)) or len(maps) < 2:
            continue
        upsampled = [each for each in maps if upsampling_of(root, each) is not None]
        if upsampled:
            first, *others = sorted(maps, key=upsampled.__contains__)
            _write_out(graph, stack, total, first, others)


def _sums_first(node: fx.Node) -> bool:
    return calls(node, SUM) and argument(node, 1, "dim") in (0, (0,), [0]) and set(node.kwargs) <= {"dim"}


def _write_out(graph: fx.Graph, stack: fx.Node, total: fx.Node, first: fx.Node, others: list[fx.Node]) -> None:
    with graph.inserting_before(stack):
        for each in others:
            first = graph.call_function(operator.add, (first, each))
            first.meta["owners"] = total.meta["owners"]
        result = graph.call_function(summed, (first,))
    result.meta["owners"] = total.meta["owners"]
    total.replace_all_uses_with(result)
    graph.erase_node(total)
    graph.erase_node(stack)


def summed(x: Tensor) -> Tensor:
    """A sum whose dtype is that of ``torch.sum``, which autocast may compute in float32."""
    return x.unsqueeze(0).sum(0) if torch.is_autocast_enabled(x.device.type) else x

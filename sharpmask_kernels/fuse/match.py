"""Find what the ops compute in a torch.fx graph, and name what keeps a near miss from being found."""

from __future__ import annotations

from torch import fx, nn

from .graph import Chain, Differs, Upsampling, in_order, upsampling_of
from .sums import unstack
from .upsample_first import UpsampleFirst
from .upsample_last import UpsampleLast


def find(root: nn.Module, graph: fx.Graph) -> tuple[list[Chain], dict[str, str]]:
    """The chains in the graph of ``root``, and the near misses as {module's name: what differs}.

    Sums over stacks are written out in the graph.
    """
    unstack(root, graph)
    chains: list[Chain] = []
    missed: dict[str, str] = {}
    left: list[tuple[fx.Node, Upsampling, str, str | None]] = []
    for node in graph.nodes:
        if (upsampling := upsampling_of(root, node)) is not None:
            found = _ending_in(root, graph, node, upsampling)
            if isinstance(found, tuple):
                left.append((node, upsampling, *found))
            else:
                chains.append(found)
    taken = {node for chain in chains for node in chain.nodes}
    for node, upsampling, name, reason in left:
        search = UpsampleFirst(root, graph, node, taken)
        if following := search.chains(upsampling):
            chains += following
            taken.update(node for chain in following for node in chain.nodes)
        elif search.reason and reason != upsampling.problem:
            _note(missed, search.name, search.reason)
        elif reason:
            _note(missed, name, reason)
    return in_order(graph, chains), missed


def _ending_in(root: nn.Module, graph: fx.Graph, up: fx.Node, upsampling: Upsampling) -> Chain | tuple[str, str | None]:
    """The chain that ends in the upsampling, or a name and why there is none (None: nothing worth a report)."""
    search = UpsampleLast(root, graph, up)
    try:
        chain = search.chain(upsampling.mode)
    except Differs as reason:
        return search.name, str(reason) if upsampling.doubles else None
    return chain if upsampling.problem is None else (chain.name, upsampling.problem)


def _note(missed: dict[str, str], name: str, reason: str) -> None:
    known = missed.get(name, reason)
    missed[name] = known if reason in known else f"{known}; {reason}"

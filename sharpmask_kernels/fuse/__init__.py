"""``fuse(model)`` lets the ops compute the decoder steps and refinement modules of a user's model.

:mod:`.trace` records a module's forward as a graph, :mod:`.match` finds what the ops compute in it
(:mod:`.upsample_first`, :mod:`.upsample_last`), :mod:`.swapped` has the classes that run the rewritten graph, which
calls :mod:`.run`; :mod:`.adapters` are for modules that need no trace.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from .. import hooks
from ..modules import Refinement
from .adapters import adapter_for, register_adapter
from .chains import normalised_after
from .graph import Chain, in_order
from .match import find
from .measured import swap_back_what_is_slower
from .sources import may_upsample, takes_none, upsamples
from .swapped import Part, Plan, Swapped, adapted_class, planned_class, swap
from .trace import Loops, Somewhere, Trace, Untraceable, forward_parameters, is_torch_layer, trace_forward

Given = dict[str, int | None]
"""The arguments of a call; a number is the length of a list."""
LENGTHS = range(1, 7)
"""How long a list of maps may be that a forward loops over."""

__all__ = ["FuseReport", "fuse", "register_adapter"]


@dataclass(frozen=True)
class FuseReport:
    """What :func:`fuse` did. ``int(report)`` is the number of refinement modules swapped.

    A name is that of the refinement module, or of its merging convolution where one module holds several.
    """

    swapped: tuple[str, ...]
    left: dict[str, str]
    """The upsamplings and modules that stay as they are, each with the reason."""

    def __int__(self) -> int:
        return len(self.swapped)

    def __str__(self) -> str:
        left = {name or "(the model itself)": reason for name, reason in self.left.items()}
        width = max(map(len, left), default=0)
        lines = [f"swapped: {len(self.swapped)}", *(f"  {name}" for name in self.swapped), f"left: {len(left)}"]
        return "\n".join(lines + [f"  {name:{width}}  {reason}" for name, reason in left.items()])


def fuse(model: nn.Module, example_inputs: Sequence[Any] | None = None) -> FuseReport:
    """Let the ops compute the decoder steps and refinement modules of ``model``, in place, and report which.

    Found is, around an upsampling x2, nearest or bilinear:

    - act(Norm(Conv(Concat(up2(M), S, ...)))): becomes ``upsample_merge``; batch normalisation in evaluation mode is
      folded into the weights, and where sizes do not double the module computes as before. up2(M) may be multiplied by
      a weight per channel, as squeeze-and-excitation does;
    - act(L + up2(M)), also as a sum over a stack: becomes ``upsample_add``;
    - Conv(up2(M)) with a 1x1 convolution: becomes up2(Conv(M));
    - up2(ReLU(Conv(Concat(S, M)))), in either order: becomes ``refine`` if S = ReLU(Conv(F)) has the same padding mode
      and no other use, else ``merge_upsample``;
    - up2(ReLU(H + Conv(M))): becomes ``add_upsample``;
    - a module that an adapter knows (:func:`register_adapter`).

    Every module stays the same object with its attributes, parameters, hooks and names. A swapped module gets a
    subclass of its class with another forward. With ``example_inputs``, the positional arguments of a call of the
    model, those that are slower than before on such inputs are swapped back; in training mode the backward counts too.
    Raises ``TypeError`` if ``model`` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    run = _Run()
    names: dict[nn.Module, list[str]] = {}
    for name, module in _post_order(model):
        before = len(run.swapped)
        run.visit(name, module)
        if found := run.swapped[before:]:
            names[module] = found
    run.report("", model, covered=False)
    slower = {} if example_inputs is None else swap_back_what_is_slower(model, example_inputs, list(names))
    swapped = dict.fromkeys(run.swapped)
    for module, ratio in slower.items():
        for name in names[module]:
            del swapped[name]
            run.left[name] = f"slower on the example: {ratio:.2f} of the plain forward's speed"
    return FuseReport(tuple(swapped), run.left)


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
    # getattr_static, because looking up forward on the class of a scripted module fails.
    return inspect.getattr_static(type(module), "forward") is not nn.Module.forward


def _words(error: Exception) -> str:
    """What keeps a forward from being traced. Errors of torch.fx speak of its own inside."""
    return str(error) if isinstance(error, Untraceable) else f"its forward needs values ({type(error).__name__})"


def _ways_to_call(kind: type[nn.Module]) -> list[list[str]]:
    """The arguments of forward that are given: all, those that are required, those that may not be None."""
    parameters = forward_parameters(kind)
    required = [name for name, default in parameters.items() if default is inspect.Parameter.empty]
    optional = [name for name, default in parameters.items() if default is None]
    ways = [required + optional, required, [name for name in required if not takes_none(kind, name)]]
    return [way for i, way in enumerate(ways) if way not in ways[:i]]


def _plain_parts(module: nn.Module) -> Iterator[nn.Module]:
    """The module and its parts, without those that are swapped."""
    if not isinstance(module, Swapped):
        yield module
        for child in module.children():
            yield from _plain_parts(child)


def _owners(nodes: Iterable[fx.Node]) -> set[nn.Module]:
    """The modules whose calls recorded these nodes."""
    return {owner for node in nodes for owner in node.meta["owners"]}


@dataclass
class _Run:
    """One call of :func:`fuse`."""

    swapped: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    untraced: dict[nn.Module, str] = field(default_factory=dict)  # modules that cannot be traced, and why
    missed: dict[nn.Module, dict[str, str]] = field(default_factory=dict)  # near misses in each module that was
    unread: set[nn.Module] = field(default_factory=set)  # modules that upsample nothing, so that no trace was tried

    def is_leaf(self, module: nn.Module) -> bool:
        """Whether the trace of a larger module calls this one without looking inside."""
        known = isinstance(module, (Refinement, Swapped, fx.GraphModule)) or module in self.untraced
        return known or hooks.customized(module)

    def visit(self, name: str, module: nn.Module) -> None:
        """Swap the module if an adapter knows it or if its trace has refinement modules."""
        if isinstance(module, (Refinement, Swapped)):
            self.missed[module] = {}
            return
        if is_torch_layer(module) or not _has_forward(module):
            return
        base: Any = type(module)
        if forward := adapter_for(module):
            swap(module, adapted_class(base, forward))
            self.missed[module] = {}
            self.swapped.append(name)
            return
        if not may_upsample(module):
            self.unread.add(module)
            return
        try:
            plans, found = self.plan(module)
        except Exception as error:  # a trace runs the user's code, which may raise anything
            self.untraced[module] = _words(error)
            return
        if found:
            swap(module, planned_class(base, plans))
            self.swapped += [name] if len(found) == 1 and name else [_join(name, conv) for conv in found]

    def plan(self, module: nn.Module) -> tuple[tuple[Plan, ...], list[str]]:
        """The code for the module's calls, and the names of the chains found."""
        if hooks.anywhere():
            raise Untraceable("hooks are registered for all modules")
        if "forward" in vars(module):
            raise Untraceable("its forward was replaced on the object")
        if isinstance(module, fx.GraphModule):
            raise Untraceable("it is a GraphModule, whose class torch.fx generates itself")
        plans: list[Plan] = []
        found: list[str] = []
        for i, traces in enumerate(self.traces(module)):
            for given, trace in traces:
                chains, missed = find(module, trace.graph)
                if i == 0:  # the fullest call is the one to report
                    found += [chain.name for chain in chains]
                    if module not in self.missed or (chains and not plans):
                        self.missed[module] = missed
                if chains:
                    plans.append(self.rewritten(module, given, trace, chains))
        return tuple(plans), list(dict.fromkeys(found))

    def traces(self, module: nn.Module) -> list[list[tuple[Given, Trace]]]:
        """The module's forward, traced with all optional tensors and with none, since it may branch on None.

        Each list is of one way to call it, for all lengths of lists.
        """
        traces: list[list[tuple[Given, Trace]]] = []
        errors: list[Exception] = []
        for given in _ways_to_call(type(module)):
            try:
                traces.append(self.unrolled(module, dict.fromkeys(given)))
            except Exception as error:  # a trace runs the user's code, which may raise anything
                errors.append(error)
        if not traces:
            raise errors[0]
        return traces

    def unrolled(self, module: nn.Module, given: Given) -> list[tuple[Given, Trace]]:
        """The trace, or, where forward loops over an argument, one for each of the lengths that this may have."""
        try:
            return [(given, self.traced(module, given))]
        except Loops as loop:
            traces: list[tuple[Given, Trace]] = []
            if given[loop.argument] is None and any(upsamples(part) for part in _plain_parts(module)):
                for length in LENGTHS:
                    with contextlib.suppress(Exception):  # forward may need a longer list
                        traces += self.unrolled(module, {**given, loop.argument: length})
            if not traces:
                raise
            return traces

    def traced(self, module: nn.Module, given: Given) -> Trace:
        """The trace, in which parts that cannot be traced are calls."""
        while True:
            try:
                return trace_forward(module, self.is_leaf, given)
            except Exception as error:
                part = getattr(error, "part", None)
                if part in self.unread:
                    self.unread.discard(part)
                    self.untraced[part] = _words(error)
                elif not isinstance(error, Somewhere) or not self.read(module):
                    raise

    def read(self, module: nn.Module) -> bool:
        """Try the parts of the module that were not traced so far. Returns whether one of them cannot be."""
        known = len(self.untraced)
        for _, part in _post_order(module):
            if part in self.unread and part is not module:
                self.unread.discard(part)
                try:
                    self.traces(part)
                except Exception as error:
                    self.untraced[part] = _words(error)
        return len(self.untraced) > known

    def rewritten(self, module: nn.Module, given: Given, trace: Trace, chains: list[Chain]) -> Plan:
        """The code of the trace with the ops in place of the chains."""

        def in_chains(chains: list[Chain]) -> set[nn.Module]:
            return _owners(node for chain in chains for node in chain.nodes)

        # Modules outside the chains stay calls, so that hooks added later run.
        calls = trace.single - in_chains([*chains, *normalised_after(module, chains)])
        graph = trace.graph
        narrow = trace_forward(module, lambda part: self.is_leaf(part) or part in calls, given).graph
        again, _ = find(module, narrow)
        if [chain.name for chain in again] == [chain.name for chain in chains]:
            graph, chains = narrow, again
        chains = in_order(graph, [*chains, *normalised_after(module, chains)])
        bypassed = _owners(node for node in graph.nodes if node.op != "call_module") | in_chains(chains)
        for chain in reversed(chains):  # backwards, because a chain may read the result of an earlier one
            chain.replace(graph)
        for node in graph.nodes:
            node.type = None  # annotations may be names that only the user's file knows
        code = graph.python_code("self")
        parts = tuple(Part.of(name, part) for name, part in module.named_modules() if part in {module, *bypassed})
        return Plan(frozenset(given.items()), code.src, parts, trace.assigns, code.globals)

    def report(self, name: str, module: nn.Module, *, covered: bool) -> None:
        """Fill ``left``. A module that is ``covered`` by the trace of a larger one is reported there."""
        own = not covered or self.is_leaf(module)
        if own:
            self.left.update({_join(name, inner): reason for inner, reason in self.missed.get(module, {}).items()})
        if module in self.untraced and upsamples(module) and self.is_innermost(module):
            self.left[name] = f"cannot be traced: {self.untraced[module]}"
        if _has_forward(module):
            covered = not own or module in self.missed
        for child_name, child in module.named_children():
            self.report(_join(name, child_name), child, covered=covered)

    def is_innermost(self, module: nn.Module) -> bool:
        """Whether the module holds convolutions and none of its untraced parts does."""

        def convolves(part: nn.Module) -> bool:
            return any(isinstance(layer, nn.Conv2d) for layer in part.modules())

        parts = (part for part in module.modules() if part is not module and part in self.untraced)
        return convolves(module) and not any(map(convolves, parts))

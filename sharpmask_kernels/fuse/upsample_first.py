"""What follows an upsampling by 2 in most decoders: a concatenation and a 3x3 convolution, or a sum."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..checks import PADDING_MODES
from ..hooks import customized
from .chains import DROPOUT, CallChain, Tail, is_shape
from .gates import MULTIPLY, is_average, is_per_channel, is_pointwise
from .graph import (
    ADD,
    ADD_IN_PLACE,
    CONCATENATE,
    Flow,
    Upsampling,
    argument,
    calls,
    conv_problem,
    module_of,
    upsampling_of,
)
from .run import added, merged, projected

REDUCTIONS = (torch.mean, torch.sum, torch.amax, "mean", "sum", "amax")
PADDING_LAYERS = {nn.ZeroPad2d: "zeros", nn.ReplicationPad2d: "replicate", nn.ReflectionPad2d: "reflect"}
PADDING_NAMES = {"constant": "zeros", "replicate": "replicate", "reflect": "reflect"}


@dataclass(frozen=True)
class _Path:
    """What stands between the upsampling and a convolution."""

    nodes: tuple[fx.Node, ...] = ()
    pad: Any = None  # the amounts of F.pad, which fits the upsampled map to its skip
    before: tuple[str, ...] = ()  # dropouts of the upsampled map
    joined: bool = False
    rest: tuple[fx.Node, ...] = ()  # what the upsampled map is concatenated with
    position: int = 0  # of the upsampled map among these
    after: tuple[str, ...] = ()  # dropouts of the concatenation
    gate: fx.Node | None = None  # what the upsampled map is multiplied with, one value for each channel
    padding: str | None = None  # of a layer that pads by 1 before the convolution

    def with_(self, node: fx.Node, **changes: Any) -> _Path:
        return dataclasses.replace(self, nodes=(*self.nodes, node), **changes)


class UpsampleFirst(Flow):
    """Follows the graph forward from one upsampling to the convolutions and sums that use it."""

    def __init__(self, root: nn.Module, graph: fx.Graph, up: fx.Node, taken: set[fx.Node]) -> None:
        super().__init__(root, graph, up)
        self.taken = taken
        self.reason = ""  # the first difference met
        self.found: list[CallChain] = []

    def chains(self, upsampling: Upsampling) -> list[CallChain]:
        """The chains that use the upsampling. If there is none, ``reason`` says what differs, or is empty."""
        self.upsampling = upsampling
        self.reason = self.unusable() or ""
        self.mask = argument(self.up, 0, "input")
        if not self.reason and not is_per_channel(self.root, self.mask):  # one row and column become a whole map
            self.follow(self.up, _Path((self.up,)))
        return self.found

    def unusable(self) -> str | None:
        """Why the upsampling itself cannot be computed by the ops."""
        module, upsampling = module_of(self.root, self.up), self.upsampling
        if isinstance(module, nn.ConvTranspose2d):
            return f"{type(module).__name__} learns its own upsampling: only nn.Upsample or interpolate can be fused"
        if module is not None and customized(module):
            return f"{self.up.target!r} has hooks or a forward of its own"
        if not upsampling.doubles and upsampling.size is None:
            return upsampling.problem
        if not upsampling.mode:
            return upsampling.problem or f"the upsampling is {upsampling.torch_mode!r}, not 'bilinear' or 'nearest'"
        return "the upsampling has antialias=True" if upsampling.antialias else None

    def differs(self, reason: str, name: str | None = None) -> None:
        if not self.reason:
            self.reason = reason
            self.name = self.name if name is None else name

    def follow(self, node: fx.Node, path: _Path) -> None:
        """Look at all that uses ``node``, which is the end of ``path``."""
        # A product first: where nothing fits, it is a better reason than what computes its other factor.
        for user in sorted(node.users, key=lambda user: not calls(user, MULTIPLY)):
            module = module_of(self.root, user)
            if user.op == "output" or is_shape(user) or is_average(self.root, user):
                continue
            if module is not None and customized(module):
                self.differs(f"{user.target!r} has hooks or a forward of its own")
            elif isinstance(module, nn.Conv2d):
                self.convolved(user, module, path)
            elif calls(user, ADD) and self.is_bare(path):
                self.summed(user, path)
            elif further := self.step(node, user, module, path):
                self.follow(user, further)
            else:
                self.differs(self.unexpected(user, path))

    @staticmethod
    def is_bare(path: _Path) -> bool:
        """Whether the end of the path is the upsampled map itself, but for dropout."""
        return not path.joined and path.pad is None and path.padding is None and path.gate is None

    def unexpected(self, user: fx.Node, path: _Path) -> str:
        what = "concatenation" if path.joined else "upsampling"
        if calls(user, MULTIPLY) and len(user.all_input_nodes) == 2:
            return f"an attention weighs the result of the {what}; what fits is one weight per channel of the small map"
        return f"{self.described(user)} stands after the {what}, not a 3x3 convolution"

    def step(self, node: fx.Node, user: fx.Node, module: nn.Module | None, path: _Path) -> _Path | None:
        """The path with ``user`` at its end, if that may stand between the upsampling and the convolution."""
        if type(module) is nn.Identity:
            return path.with_(user)
        if type(module) in DROPOUT and len(node.users) == 1 and path.padding is None and path.pad is None:
            names = (str(user.target),)
            changes = {"after": path.after + names} if path.joined else {"before": path.before + names}
            return path.with_(user, **changes)
        if calls(user, MULTIPLY) and self.is_bare(path):
            return self.gated(node, user, path)
        if calls(user, CONCATENATE) and not path.joined and path.padding is None:
            return self.concatenated(node, user, path)
        if (padding := self.padding(user, module)) is not None and path.padding is None:
            return path.with_(user, padding=padding)
        mode = argument(user, 2, "mode", "constant") if user.target is F.pad else None
        if mode in ("constant", "replicate") and not path.joined and path.pad is None and path.padding is None:
            return path.with_(user, pad=(argument(user, 1, "pad"), mode))
        return None

    def gated(self, node: fx.Node, user: fx.Node, path: _Path) -> _Path | None:
        gate = next((each for each in user.all_input_nodes if each is not node), None)
        return path.with_(user, gate=gate) if is_per_channel(self.root, gate) else None

    def concatenated(self, node: fx.Node, user: fx.Node, path: _Path) -> _Path | None:
        tensors = argument(user, 0, "tensors")
        dim = user.kwargs.get("axis", argument(user, 1, "dim", 0))
        if dim not in (1, -3) or not isinstance(tensors, (list, tuple)) or list(tensors).count(node) != 1:
            return None
        position = list(tensors).index(node)
        rest = tuple(each for each in tensors if each is not node)
        if not self.upsampling.doubles and any(upsampling_of(self.root, each) for each in rest):
            self.differs("maps of several sizes are upsampled and concatenated; what fits is one that is doubled")
            return None
        return path.with_(user, joined=True, rest=rest, position=position)

    def padding(self, user: fx.Node, module: nn.Module | None) -> str | None:
        """The mode of a call that pads by 1 on all sides."""
        if type(module) in PADDING_LAYERS and module.padding == (1, 1, 1, 1):  # type: ignore[union-attr]
            return PADDING_LAYERS[type(module)]  # type: ignore[index]
        by_one = user.target is F.pad and argument(user, 1, "pad") in ((1, 1, 1, 1), [1, 1, 1, 1])
        if by_one and argument(user, 3, "value", None) in (None, 0):
            return PADDING_NAMES.get(argument(user, 2, "mode", "constant"))
        return None

    def convolved(self, node: fx.Node, conv: nn.Conv2d, path: _Path) -> None:
        if node in self.taken:
            return
        name = str(node.target)
        if self.is_bare(path) and not path.before and type(conv) is nn.Conv2d and is_pointwise(conv):
            self.projected(node, name, path)
            return
        modes = (*PADDING_MODES, "reflect") if self.upsampling.mode == "nearest" else PADDING_MODES
        problem = conv_problem(conv, 1 if path.padding is None else 0, modes)
        if problem:
            self.differs(f"{name!r} {problem}", name)
            return
        padding = conv.padding_mode if path.padding is None else path.padding
        if padding not in modes:
            self.differs(f"the padding before {name!r} is by reflection, not zeros or replicated", name)
            return
        if not self.readable(path, node):
            self.differs(f"an input of {name!r} is changed in place", name)
            return
        tail = Tail.of(self.root, node)
        modules = {"conv": name, "norm": tail.norm, "dropouts": (path.before, path.after, tail.dropouts)}
        options = {"position": path.position, "padding": padding, "padded": path.padding is not None}
        inputs = (self.mask, self.upsampling.size, path.pad, path.rest, path.gate)
        self.add(name, tail, path, merged, inputs, modules, options)

    def projected(self, node: fx.Node, name: str, path: _Path) -> None:
        if self.readable(path, node):
            tail = Tail.of(self.root, node)
            modules = {"conv": name, "norm": tail.norm, "dropouts": tail.dropouts}
            self.add(name, tail, path, projected, (self.mask, self.upsampling.size), modules, {})
        else:
            self.differs(f"an input of {name!r} is changed in place", name)

    def summed(self, total: fx.Node, path: _Path) -> None:
        first, second = argument(total, 0, "input"), argument(total, 1, "other")
        end = path.nodes[-1]
        lateral = second if first is end else first
        if total in self.taken or calls(lateral, REDUCTIONS):
            return
        if not isinstance(lateral, fx.Node) or lateral is end or total.kwargs.get("alpha", 1) != 1:
            self.differs("the sum is not of the upsampled map and another")
        elif calls(total, ADD_IN_PLACE) and (first is not end or len(end.users) != 1):
            self.differs("the sum is written into a map that is used elsewhere too")
        elif not self.readable(path, total):
            self.differs("the small map is changed before the sum")
        else:
            tail = Tail.of(self.root, total)
            name = next((str(x.target) for x in (lateral, self.mask) if x.op == "call_module"), total.name)
            inputs = (self.mask, self.upsampling.size, lateral)
            self.add(name, tail, path, added, inputs, {"dropouts": (path.before, tail.dropouts)}, {})

    def readable(self, path: _Path, stop: fx.Node) -> bool:
        """Whether the maps are the same when the op reads them, at ``stop``, as where they were read so far."""
        self.nodes = [*path.nodes, stop]
        joined = next((node for node in path.nodes if calls(node, CONCATENATE)), stop)
        reads = [(self.mask, self.up), *((each, joined) for each in path.rest)]
        if path.gate is not None:
            reads.append((path.gate, next(node for node in path.nodes if calls(node, MULTIPLY))))
        return all(isinstance(each, fx.Node) and not self.may_change(each, start, stop) for each, start in reads)

    def add(
        self,
        name: str,
        tail: Tail,
        path: _Path,
        function: Callable[..., Tensor],
        inputs: tuple[Any, ...],
        modules: dict[str, Any],
        options: dict[str, Any],
    ) -> None:
        ways = {"mode": self.upsampling.torch_mode, "align_corners": self.upsampling.align_corners}
        options = {**options, **ways, "activation": tail.activation}
        nearest = self.upsampling.mode == "nearest"
        averages = tuple(node for node in self.up.users if nearest and is_average(self.root, node))
        self.found.append(CallChain(name, tail.nodes, list(path.nodes), function, inputs, modules, options, averages))

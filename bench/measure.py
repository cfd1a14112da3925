"""A workload made ready: its inputs, the expected result, and functions to be timed, each checked first."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from .peers import EAGER, Contestant
from .roofline import Cost, cost
from .workloads.base import Function, Plain, Workload

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp64": torch.float64}

INPUT_SETS = 3
"""Calls take the sets in turn, so that no call finds in the cache all that the call before has read."""

# The largest error allowed in a result and in a gradient: the 2-norm of the difference, as a share of that of the
# expected tensor. Gradients get more, because a weight's gradient is a sum over up to 200,000 cells, and because
# rounding decides whether ReLU lets an activation near 0 through.
TOLERANCE = {
    torch.float64: (1e-12, 1e-10),  # sums of up to 9 * 1024 products
    torch.float32: (1e-5, 1e-3),  # the same
    torch.float16: (4e-3, 2e-2),  # a few intermediate results, each rounded to 2^-11
    torch.bfloat16: (3e-2, 5e-2),  # the same with 2^-8
}

MASK_TOLERANCE = 1e-3
"""Pixels that may differ, as a share of the foreground: rounding moves samples across the threshold."""

ROUNDED_TOLERANCE = 2e-2
"""The same for contestants that crop at whole cells, or let the border of a window fade into its surroundings."""


class WrongResult(AssertionError):
    """A contestant does not compute what plain PyTorch does; it must not be timed."""


class Setting:
    """A workload on one device in one dtype."""

    def __init__(self, workload: Workload, dtype: torch.dtype, device: torch.device) -> None:
        torch.manual_seed(0)
        # PyTorch compiles only so many variants, then runs uncompiled. What was compiled for others would count.
        torch.compiler.reset()
        self.workload, self.name, self.training = workload, workload.name, workload.training
        self.module = self._module(dtype, device)
        sets = [workload.inputs(torch.randn) for _ in range(INPUT_SETS)]
        self.sets = [tuple(x.to(device, dtype) for x in inputs) for inputs in sets]
        self.gradient: Tensor | None = None
        if self.training:
            self.gradient = torch.randn(self.module(*self.sets[0]).shape).to(device, dtype)
        self.expected = self._outcome(self.module, self.module, self._ready(self.sets[0], EAGER))

    @functools.cached_property
    def cost(self) -> Cost:
        """What nobody can do without; counted in a run of plain PyTorch."""
        with FlopCounterMode(display=False) as counter:
            result = self.module(*self._ready(self.sets[0], EAGER))
            if self.training:
                result.backward(self.gradient)
        self.module.zero_grad()
        return cost(counter.get_total_flops(), [*self.sets[0], *self.module.parameters(), *self.expected])

    def runner(self, contestant: Contestant, first: int = 0, wait: bool = True) -> Callable[[], None]:
        """A function that runs ``contestant`` once, on the next set of inputs, beginning with set ``first``.

        It returns when a GPU has done its work, unless told not to ``wait``. Raises :class:`WrongResult` if its result
        is not that of plain PyTorch.
        """
        x = self.sets[0][0]
        module = self._module(x.dtype, x.device)
        module.load_state_dict(self.module.state_dict())
        module = module.to(memory_format=_memory_format(contestant))
        sets = [self._ready(inputs, contestant) for inputs in self.sets]
        function = contestant.prepare(module, sets[0])
        self._check(contestant, self._outcome(function, module, sets[0]))
        upcoming = itertools.islice(itertools.cycle(sets), first, None)
        parameters, gradient = list(module.parameters()), self._gradient(contestant)
        differentiated = [i for i in range(len(sets[0])) if i not in self.workload.frozen]
        synchronize = torch.cuda.synchronize if wait and x.is_cuda else lambda: None

        def forward() -> None:
            function(*next(upcoming))
            synchronize()

        def forward_and_backward() -> None:
            inputs = next(upcoming)
            # In plain PyTorch, a map without a window on it has no gradient.
            leaves = [*(inputs[i] for i in differentiated), *parameters]
            torch.autograd.grad(function(*inputs), leaves, gradient, allow_unused=True)
            synchronize()

        return forward_and_backward if self.training else forward

    def _module(self, dtype: torch.dtype, device: torch.device) -> Plain:
        return self.workload.module(device).to(device, dtype).requires_grad_(self.training)

    def _ready(self, inputs: tuple[Tensor, ...], contestant: Contestant) -> tuple[Tensor, ...]:
        """The inputs in the contestant's memory format, with gradients if training."""
        formatted = (x.contiguous(memory_format=_memory_format(contestant)) if x.ndim == 4 else x for x in inputs)
        frozen = self.workload.frozen
        return tuple(x.detach().requires_grad_(self.training and i not in frozen) for i, x in enumerate(formatted))

    def _gradient(self, contestant: Contestant) -> Tensor | None:
        """The gradient of the result, in the contestant's memory format."""
        return None if self.gradient is None else self._ready((self.gradient,), contestant)[0].detach()

    def _outcome(self, function: Function, module: Plain, inputs: tuple[Tensor, ...]) -> list[Any]:
        """The result and, if training, all gradients."""
        result = module.comparable(function(*inputs))
        if not self.training:
            return [result]
        leaves = [x for x in (*inputs, *module.parameters()) if x.requires_grad]
        return [result.detach(), *torch.autograd.grad(result, leaves, self.gradient, materialize_grads=True)]

    def _check(self, contestant: Contestant, found: list[Any]) -> None:
        for i, (ours, theirs) in enumerate(zip(found, self.expected, strict=True)):
            allowed = ROUNDED_TOLERANCE if contestant.rounds else MASK_TOLERANCE
            if isinstance(theirs, Tensor) and theirs.is_floating_point():
                allowed = TOLERANCE[self.sets[0][0].dtype][i > 0]
            off = error(ours, theirs)
            if not off <= allowed:
                what = f"gradient {i}" if i else "result"
                raise WrongResult(
                    f"{contestant.name} differs from plain PyTorch on {self.name}, so it is not timed: "
                    f"{what} off by {off:.1e}, allowed {allowed:.0e}"
                )


def _memory_format(contestant: Contestant) -> torch.memory_format:
    return torch.channels_last if contestant.channels_last else torch.contiguous_format


def error(found: Any, expected: Any) -> float:
    """The difference as a share of ``expected``: in the 2-norm or, of masks and run lengths, in pixels."""
    if not isinstance(expected, Tensor):
        masks = [(decoded(x), decoded(y)) for x, y in zip(found, expected, strict=True)]
        return sum(int((x != y).sum()) for x, y in masks) / max(1, sum(int(y.sum()) for _, y in masks))
    if found.shape != expected.shape:
        return float("inf")
    if expected.dtype == torch.bool:
        return float((found != expected).sum() / expected.sum().clamp(min=1))
    # float64 holds the squares of all dtypes. A NaN makes the error NaN, which is never within the tolerance.
    difference = torch.linalg.vector_norm(found.double() - expected.double())
    return float(difference / torch.linalg.vector_norm(expected.double()).clamp(min=1e-30))


def decoded(rle: dict[str, Any]) -> Any:
    """The mask. All ones if the run lengths are not what COCO writes, because decoding may then give anything."""
    mask = coco.decode(rle)
    return mask if coco.encode(mask)["counts"] == rle["counts"] else np.ones_like(mask)


def trace(run: Callable[[], None], folder: Path, name: str) -> Path:
    """Writes a torch.profiler trace of one run, for chrome://tracing or https://ui.perfetto.dev. Returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name.replace(' ', '-')}.json"
    with torch.profiler.profile() as profiler:
        run()
    profiler.export_chrome_trace(str(path))
    return path

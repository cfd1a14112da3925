"""Does a backend agree with the reference on this very machine?

Kernels are written and tested where not every GPU is at hand. So before a GPU's kernels are chosen automatically, each
op runs on small inputs, forward and backward, against the reference in float64. The cases stand with the ops
(:mod:`sharpmask_kernels.ops`). As a module, ``python -m sharpmask_kernels.self_check BACKEND DEVICE`` prints the result
as JSON: this is how :mod:`sharpmask_kernels.verdicts` runs it.
"""

from __future__ import annotations

import importlib
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import registry
from .ops.library import Case

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Largest error allowed, as a share of the largest value: sums of tens of products, a few roundings to the dtype."""


def cases(op: str, random: Callable[..., Tensor], device: torch.device) -> Iterator[tuple[str, Case]]:
    """The cases of ``op``, each with a name; they stand in the op's room."""
    room = importlib.import_module(f"{__package__}.ops.{registry.ROOMS[op]}")
    found: Iterator[tuple[str, Case]] = room.CASES[op](random, device)
    return found


class Problem(NamedTuple):
    """A case in which a backend does not agree with the reference."""

    told: str
    inputs: Sequence[Tensor]


def check(backend: str, device: torch.device) -> dict[str, str]:
    """Every op that ``backend`` has, with "ok" or what differed from the reference."""
    ops = [op for op in registry.OPS if registry.backend(backend).has(op)]
    return {op: next((problem.told for problem in problems(op, backend, device)), "ok") for op in ops}


def problems(op: str, backend: str, device: torch.device) -> Iterator[Problem]:
    """The cases of an op in which ``backend`` differs from the reference, or fails."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(device)

    for (name, case), dtype in itertools.product(cases(op, random, device), TOLERANCE):
        if registry.backend(backend).refusal(device, dtype):
            continue
        if told := _problem(case, backend, dtype):
            yield Problem(f"{name}, {dtype}: {told}", case.inputs)


def _problem(case: Case, backend: str, dtype: torch.dtype) -> str | None:
    try:
        error = _error(case, backend, dtype)
    except Exception as problem:  # whatever a kernel may do wrong is a finding
        return f"{type(problem).__name__}: {problem}"
    if error <= TOLERANCE[dtype]:
        return None
    return f"off by {error:.1e} of the largest value, allowed {TOLERANCE[dtype]:.0e}"


def _error(case: Case, backend: str, dtype: torch.dtype) -> float:
    """The largest error of output and gradients, each as a share of the largest value of its tensor."""
    rounded = [x.to(dtype) for x in case.inputs]
    found = outcome(case, backend, rounded)
    expected = outcome(case, "reference", [x.double() for x in rounded])
    return max((_relative(f, e) for f, e in zip(found, expected, strict=True)), default=0.0)


def outcome(case: Case, backend: str, inputs: list[Tensor]) -> list[Tensor]:
    """The output and, where the op has them, the gradients of the inputs."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = case.run(backend, *leaves)
    if not out.requires_grad:
        return [out]
    # A gradient that differs from cell to cell, and whose sums, the biases' gradients, are not 0 but for rounding.
    weight = torch.linspace(-0.5, 1, max(out.numel(), 1), device=out.device, dtype=torch.float64)[: out.numel()]
    return [out.detach(), *torch.autograd.grad(out, leaves, weight.view_as(out).to(out.dtype))]


def _relative(found: Tensor, expected: Tensor) -> float:
    scale = expected.abs().max().clamp(min=1e-30)
    return float(((found.double() - expected.double()).abs().max() / scale).nan_to_num(nan=float("inf")))


if __name__ == "__main__":
    print(json.dumps(check(sys.argv[1], torch.device(sys.argv[2]))))

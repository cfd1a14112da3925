"""FlopCounterMode counts an op as the convolutions of its formula, forward and backward."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from .inputs import Random, TopDownPass, arguments, without_biases
from .oracle import PLAIN, plain_horizontal
from .subjects import REFINEMENT, Subject, each

pytestmark = pytest.mark.grid


def flops(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def forward_and_backward(op: Callable[..., Tensor], inputs: Sequence[Tensor | None]) -> tuple[int, int]:
    outs: list[Tensor] = []
    forward = flops(lambda: outs.append(op(*inputs)))
    leaves = [x for x in inputs if x is not None and x.requires_grad]
    return forward, flops(lambda: torch.autograd.grad(outs[0].sum(), leaves)) if leaves else 0


@each(*REFINEMENT)
@pytest.mark.parametrize("needs", ["all", "maps", "parameters", "none"])
@pytest.mark.parametrize("biases", [True, False])
def test_flops_of_refinement(subject: Subject, needs: str, biases: bool) -> None:
    given = arguments(subject.op, Random(torch.float32, device=subject.device), (2, 3, 4), (3, 2, 4))
    inputs = given if biases else without_biases(given)
    for i, x in enumerate(given):
        x.requires_grad_(needs == "all" or needs == ("maps" if i < 2 else "parameters"))
    expected = forward_and_backward(lambda *x: PLAIN[subject.op](*x, "bilinear", "zeros"), inputs)
    assert forward_and_backward(subject.function, inputs) == expected
    assert expected[0] > 0


@each("refine_windows")
@pytest.mark.parametrize("given_out", [False, True])
def test_flops_of_refine_windows(subject: Subject, given_out: bool) -> None:
    top_down = TopDownPass(torch.float32, device=subject.device, convs=2)
    out = torch.empty_like(top_down(backend=subject.backend)) if given_out else None
    # Each stage's convolutions at its size, then the head at the last one.
    side, count, expected = top_down.encoding.shape[-1], len(top_down.encoding), 0
    for stage in [*top_down.stages, [top_down.head]]:
        expected += sum(2 * count * weight.numel() * side**2 for weight, _ in stage)
        side *= 2
    assert flops(lambda: top_down(backend=subject.backend, out=out)) == expected


def test_the_counter_is_not_imported_with_the_ops() -> None:
    code = """
import sys
import sharpmask_kernels
assert not {"torch.utils.flop_counter", "torch._dynamo", "triton"} & set(sys.modules)
from torch.utils.flop_counter import flop_registry
import torch
assert torch.ops.sharpmask.refine in flop_registry
assert torch.ops.sharpmask.refine_backward in flop_registry
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@each("horizontal")
@pytest.mark.parametrize("needs", ["all", "parameters", "none"])
def test_flops_of_horizontal(subject: Subject, needs: str) -> None:
    random = Random(torch.float32, device=subject.device)
    feature, *parameters = (random(*shape) for shape in [(2, 3, 4, 5), (5, 3, 3, 3), (5,), (2, 5, 3, 3), (2,)])
    feature.requires_grad_(needs == "all")
    for x in parameters:
        x.requires_grad_(needs != "none")

    def run(op: Callable[..., Tensor]) -> tuple[int, int]:
        pairs = list(zip(parameters[::2], parameters[1::2], strict=True))
        return forward_and_backward(lambda *_: op(feature, pairs, padding_mode="zeros"), [feature, *parameters])

    assert run(subject.function) == run(plain_horizontal)

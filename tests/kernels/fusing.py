"""What the tests of fuse share: which ops a model calls, and a comparison with the model as it was."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sharpmask_kernels.fuse import FuseReport, fuse


class OpsCalled(TorchDispatchMode):
    """Counts the ops of this package that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "sharpmask":
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def ops_of(model: nn.Module, *inputs: Any) -> list[str]:
    with OpsCalled() as called, torch.no_grad():
        model(*inputs)
    return called.names


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from tensors(each)


def results(model: nn.Module, *inputs: Any) -> list[Tensor]:
    """The outputs, the gradients of all inputs and parameters, and the buffers afterwards."""
    torch.manual_seed(3)  # dropout
    outputs = list(tensors(model(*inputs)))
    leaves = [x for x in [*tensors(inputs), *model.parameters()] if x.requires_grad]
    total = sum((x.float().sin() if x.dtype != torch.float64 else x.sin()).sum() for x in outputs)
    gradients = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    return [*outputs, *gradients, *(x.clone() for x in model.buffers())]


def assert_near(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    """Each tensor differs by at most ``tolerance`` of its largest value, or of a hundredth of the largest of all.

    Some are 0 but for rounding, as the gradient of a bias before a normalisation by the batch.
    """
    assert len(found) == len(expected)
    least = 0.01 * max((x.double().abs().max().item() for x in expected if x.numel()), default=0.0)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == theirs.dtype and mine.shape == theirs.shape
        scale = theirs.double().abs().max().item() if theirs.numel() else 0.0
        torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance * max(scale, least))


def check(model: nn.Module, inputs: Sequence[Any], ops: Sequence[str], tolerance: float = 1e-9) -> FuseReport:
    """fuse finds as many chains as there are ``ops``; the model then runs these and computes the same as before."""
    plain = copy.deepcopy(model)
    names = list(model.state_dict())
    report = fuse(model)
    assert int(report) == len(ops), report
    assert sorted(ops_of(model.eval(), *inputs)) == sorted(ops), report
    for training in (False, True):
        assert_near(results(model.train(training), *inputs), results(plain.train(training), *inputs), tolerance)
    assert list(model.state_dict()) == names
    return report

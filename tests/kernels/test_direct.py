"""Calls that go to an op's kernel without PyTorch's dispatcher: which may, and that nobody notices."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from sharpmask_kernels import merge_upsample, upsample_merge
from sharpmask_kernels.ops import direct


class Watching(TorchFunctionMode):
    """A mode that changes nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Quiet(Tensor):
    """A subclass that sees functions only."""


def negated(x: Tensor) -> Tensor:
    """A view whose signs PyTorch changes later."""
    return torch.complex(x, x).conj().imag


X = torch.ones(2, 2)

PLAIN: dict[str, Callable[[], Any]] = {
    "a tensor": lambda: X,
    "a parameter": lambda: nn.Parameter(X),
    "one part of another": lambda: X[:, :1],
    "double precision": lambda: X.double(),
    "a list": lambda: [X, None],
    "no tensor": lambda: (1, 2.0, "zeros", True, None),
}
OTHERS: dict[str, Callable[[], Any]] = {
    "a subclass of functions": lambda: X.as_subclass(Quiet),
    "a fake tensor": lambda: FakeTensorMode().from_tensor(X),
    "a subclass in a list": lambda: [X, X.as_subclass(Quiet)],
    "a list in a list": lambda: [[X]],
    "a tuple": lambda: (X,),
    "negated": lambda: negated(X),
    "sparse": lambda: X.to_sparse(),
    "meta": lambda: X.to("meta"),
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_arguments(name: str) -> None:
    assert direct.possible([PLAIN[name]()])


@pytest.mark.parametrize("name", ["DispatchKeySet", "_dispatch_keys", "_any_requires_grad"])
def test_without_what_a_later_pytorch_may_lack(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        with monkeypatch.context() as lacking:
            lacking.delattr(torch._C, name)
            assert not importlib.reload(direct).possible([X])
    finally:
        importlib.reload(direct)
    assert direct.possible([X])


def test_tensors_made_for_inference_are_plain() -> None:
    with torch.inference_mode():
        assert direct.possible([X + 1])


@pytest.mark.parametrize("name", OTHERS)
def test_other_arguments(name: str) -> None:
    assert not direct.possible([OTHERS[name]()])


@contextmanager
def profiled() -> Iterator[None]:
    with torch.autograd.profiler.profile():
        yield


MODES: dict[str, Callable[[], Any]] = {
    "of functions": Watching,
    "of the dispatcher": TorchDispatchMode,
    "dual numbers": forward_ad.dual_level,
    "a profiler": profiled,
}


@pytest.mark.parametrize("name", MODES)
def test_modes(name: str) -> None:
    with MODES[name]():
        assert not direct.possible([X])
    assert direct.possible([X])


def test_transforms() -> None:
    seen = []

    def function(x: Tensor) -> Tensor:
        seen.append(direct.possible([X]))
        return x

    torch.func.vmap(function)(X)
    assert seen == [False]


def step(*inputs: Tensor) -> Tensor:
    skip, mask, weight, bias = inputs
    return upsample_merge(merge_upsample(skip, mask, weight, bias), None, weight[:, :3], bias)


def inputs() -> list[Tensor]:
    random = torch.Generator().manual_seed(7)
    shapes = (2, 4, 5, 6), (2, 3, 5, 6), (3, 7, 3, 3), (3,)
    return [torch.randn(shape, generator=random).requires_grad_() for shape in shapes]


def test_same_bits_as_by_the_dispatcher() -> None:
    found = []
    for way in (nullcontext(), Watching()):
        leaves = inputs()
        with way:
            out = step(*leaves)
            found.append([out, *torch.autograd.grad(out.sin().sum(), leaves)])
    for ours, other in zip(*found, strict=True):
        assert torch.equal(ours, other)


def test_gradients_of_some_inputs() -> None:
    leaves = inputs()
    fixed = [x.detach() for x in leaves]
    for i, leaf in enumerate(leaves):
        some = [*fixed[:i], leaf, *fixed[i + 1 :]]
        (found,) = torch.autograd.grad(step(*some).sum(), [leaf])
        all_of_them = torch.autograd.grad(step(*leaves).sum(), leaves)
        torch.testing.assert_close(found, all_of_them[i])


def test_nothing_is_recorded_below_autograd() -> None:
    with torch._C._AutoDispatchBelowAutograd():
        out = merge_upsample(*inputs())
    assert not out.requires_grad


def test_a_changed_input_is_noticed() -> None:
    leaves = inputs()
    mask = leaves[1] * 1
    out = merge_upsample(leaves[0], mask, *leaves[2:])
    with torch.no_grad():
        mask.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()

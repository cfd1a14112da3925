"""Which swapped modules are slower than they were, on the inputs that an example gives them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .swapped import Swapped, plain_again

ROUNDS = 7
SECONDS = 0.005
"""A turn lasts at least so long."""


def swap_back_what_is_slower(
    model: nn.Module, example: Sequence[Any], swapped: Sequence[nn.Module]
) -> dict[nn.Module, float]:
    """Give modules that do not gain their own class again. Returns those, each with its plain time as a share of its
    time when swapped.

    Parts come before what holds them. In training mode, the backward counts too. Buffers, such as running means, and
    random numbers are as before.
    """
    found = {}
    with as_before(model):
        calls = recorded(model, example, swapped)
        for module in swapped:
            if module in calls:
                ratio = speedup(module, *calls[module])
                if ratio < 1:
                    plain_again(module)
                    found[module] = ratio
    return found


@contextmanager
def as_before(model: nn.Module) -> Iterator[None]:
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = {x.device.index for x in model.parameters() if x.is_cuda}
    with torch.random.fork_rng(devices=list(devices)):
        yield
    with torch.no_grad():
        for buffer, value in buffers:
            buffer.copy_(value)


Call = tuple[tuple[Any, ...], dict[str, Any]]


def recorded(model: nn.Module, example: Sequence[Any], modules: Sequence[nn.Module]) -> dict[nn.Module, Call]:
    """The arguments of the first call of each module when the model gets the example. A module may get none."""
    calls: dict[nn.Module, Call] = {}

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.setdefault(module, copied((args, kwargs)))

    with ExitStack() as hooks, torch.no_grad():
        for module in modules:
            hooks.callback(module.register_forward_pre_hook(record, with_kwargs=True).remove)
        model(*example)
    return calls


def copied(values: Any) -> Any:
    return pytree.tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, values)


def speedup(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """The plain forward's time, with the backward in training mode, divided by the swapped one's."""
    swapped = type(module)
    assert issubclass(swapped, Swapped)
    classes = (swapped._plain_class, swapped)
    leaves = [x.requires_grad_() for x in pytree.tree_leaves((args, kwargs)) if is_real(x) and module.training]
    leaves += [x for x in module.parameters() if x.requires_grad and module.training]

    def run() -> None:
        with torch.set_grad_enabled(module.training):
            given, named = pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, (args, kwargs))
            out = module(*given, **named)
            results = [x.sum() for x in pytree.tree_leaves(out) if is_real(x) and x.requires_grad]
            if results and leaves:
                torch.autograd.grad(sum(results[1:], results[0]), leaves, allow_unused=True)
        if any(x.is_cuda for x in pytree.tree_leaves(args) if isinstance(x, Tensor)):
            torch.cuda.synchronize()

    least = [float("inf")] * 2
    try:
        for turn in range(ROUNDS + 1):  # the first one prepares
            for i, kind in enumerate(classes):
                module.__class__ = kind
                least[i] = min(least[i], seconds(run)) if turn else float("inf")
    finally:
        module.__class__ = swapped
    return least[0] / least[1]


def is_real(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def seconds(run: Callable[[], None]) -> float:
    calls, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < SECONDS or not calls:
        run()
        calls += 1
    return spent / calls

"""Checks the addresses that kernels use in Triton's interpreter.

Every load and store of a kernel must stay within one tensor of its launch. A kernel that goes beyond fails, even if the
memory there can be read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

extents: list[tuple[int, int]] = []
"""The addresses [first, last) of the tensors of the launch."""
addresses_seen = 0


def install() -> None:
    """Install the checks, for the rest of the process."""
    from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

    load, store, launch = (
        InterpreterBuilder.create_masked_load,
        InterpreterBuilder.create_masked_store,
        GridExecutor.__call__,
    )

    def checked_load(self: Any, pointers: Any, mask: Any, *others: Any) -> Any:
        look(pointers, mask)
        return load(self, pointers, mask, *others)

    def checked_store(self: Any, pointers: Any, value: Any, mask: Any, *others: Any) -> Any:
        look(pointers, mask)
        return store(self, pointers, value, mask, *others)

    def checked_launch(self: Any, *args: Any, **kwargs: Any) -> None:
        extents[:] = [extent(x) for x in tensors((*args, *kwargs.values())) if x.numel()]
        launch(self, *args, **kwargs)

    InterpreterBuilder.create_masked_load = checked_load
    InterpreterBuilder.create_masked_store = checked_store
    GridExecutor.__call__ = checked_launch


def look(pointers: Any, mask: Any) -> None:
    global addresses_seen
    at = pointers.data[mask.data.astype(bool)]
    addresses_seen += at.size
    if at.size == 0:
        return
    low, high = int(at.min()), int(at.max()) + pointers.get_element_ty().primitive_bitwidth // 8
    if not any(first <= low and high <= last for first, last in extents):
        raise IndexError(f"addresses {low:#x} to {high:#x} are out of bounds: not in one tensor of the launch")


def tensors(arguments: Any) -> Iterator[Tensor]:
    """Those among the arguments of a launch, and in the tuples among them."""
    for x in arguments:
        if isinstance(x, Tensor):
            yield x
        elif isinstance(x, tuple):
            yield from tensors(x)


def extent(x: Tensor) -> tuple[int, int]:
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()

"""Bounds for Triton's interpreter, which computes from raw addresses.

Every load and store of a kernel must stay within one tensor of its launch. A kernel that goes beyond fails, even where
the memory happens to be readable.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

extents: list[tuple[int, int]] = []
"""The addresses [first, last) of the tensors of the launch."""
addresses_seen = 0


def install() -> None:
    """Put the checks in, for as long as the process lives."""
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
        extents[:] = [extent(x) for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.numel()]
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


def extent(x: Tensor) -> tuple[int, int]:
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()

"""Forward-mode derivatives, ``torch.func`` and ``vmap`` of the ops: PyTorch transforms their plain form.

A kernel of a backend has one derivative, the backward that :mod:`.library` registers. Where PyTorch asks for any other,
the reference computes the call in PyTorch's own operations, of which PyTorch knows all derivatives and batching rules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

Plain = Callable[..., Any]
"""Computes an op from the arguments of its schema, in PyTorch's own operations, or says why it cannot."""


class Library(torch.library.Library):
    """A library whose autograd kernels leave transformed calls to the plain form of their op."""

    def __init__(self, namespace: str, kind: str) -> None:
        super().__init__(namespace, kind)
        self.plain: dict[str, Plain] = {}
        """By the name of the op."""

    def impl(self, op_name: Any, fn: Any, dispatch_key: str = "", **options: Any) -> None:
        """Register a kernel. ``torch.library.register_autograd`` calls this, too."""
        if dispatch_key == "Autograd":
            fn = _unless_transformed(fn, self.plain[op_name])
        super().impl(op_name, fn, dispatch_key, **options)

    def batch(self, op_name: str) -> None:
        """Let PyTorch vectorise the plain form, under ``torch.vmap`` and under the one of ``is_grads_batched``."""
        for key in ("FuncTorchBatched", "Batched"):
            self.impl(op_name, self.plain[op_name], key)


def _unless_transformed(autograd: Callable[..., Any], plain: Plain) -> Callable[..., Any]:
    def kernel(keyset: Any, *arguments: Any) -> Any:
        may = (
            torch._C._are_functorch_transforms_active()
            or forward_ad._current_level >= 0
            or torch._C._len_torch_dispatch_stack()  # a compiler enters a dual level without telling forward_ad
        )
        if may and _differs(arguments):
            return plain(*arguments)
        return autograd(keyset, *arguments)

    return kernel


def _differs(arguments: tuple[Any, ...]) -> bool:
    """Whether the transform in force wants a derivative in one of the arguments."""
    if torch._C._are_functorch_transforms_active() and torch._C._any_requires_grad(*arguments):
        return True
    tensors = (x for x in pytree.tree_leaves(arguments) if isinstance(x, Tensor))
    return any(forward_ad.unpack_dual(x, level=0).tangent is not None for x in tensors)

"""Which calls of an op may go to its kernel at once.

PyTorch's dispatcher costs a call some 25 µs, and a registered gradient as much again, which is as long as a convolution
of a few cells takes. They may be left out where they would only pass the arguments on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet
from torch.autograd import _profiler_enabled as _profiled
from torch.autograd import forward_ad
from torch.nn import Parameter

# Functions at hand: looking them up takes as long as calling them.
_in_force = torch._C._dispatch_tls_local_include_set
_function_modes = torch._C._len_torch_function_stack
_keys = torch._C._dispatch_keys
_NUMBERS = (str, bool, int, float, type(None))


def _others(*keys: DispatchKey) -> int:
    """The bits of all dispatch keys but these."""
    bits = 0
    for key in keys:
        bits |= DispatchKeySet(key).raw_repr()
    return ~bits


_IN_FORCE = _others(DispatchKey.BackendSelect, DispatchKey.ADInplaceOrView)
_OF_A_TENSOR = _others(DispatchKey.CPU, DispatchKey.ADInplaceOrView, DispatchKey.AutogradCPU, DispatchKey.AutocastCPU)


def possible(arguments: Sequence[Any]) -> bool:
    """Whether the dispatcher would take these arguments to the kernel as they are, or to its gradient first.

    It does more in a mode (of a compiler, a profiler, ``torch.func``, the user's own), in forward-mode derivatives, for
    subclasses of tensors and lazily negated ones. Only calls on the CPU are looked at.
    """
    return (
        not _in_force().raw_repr() & _IN_FORCE
        and not _function_modes()
        and not _profiled()
        and forward_ad._current_level < 0
        and _are_plain(arguments)
    )


def _are_plain(arguments: Sequence[Any]) -> bool:
    for x in arguments:
        kind = type(x)
        if kind is Tensor or kind is Parameter:
            if _keys(x).raw_repr() & _OF_A_TENSOR:
                return False
        elif kind is list or kind is tuple:
            if not _are_plain(x):
                return False
        elif kind not in _NUMBERS and isinstance(x, Tensor):
            return False
    return True


def has_gradient(arguments: Sequence[Any]) -> bool:
    """Whether autograd has to record the call."""
    return torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments)


def records_gradients() -> bool:
    """Not inside the kernel of another op, which has a gradient of its own."""
    return not torch._C._dispatch_tls_is_dispatch_key_excluded(DispatchKey.AutogradFunctionality)

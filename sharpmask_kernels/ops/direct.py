"""Which calls of an op may go to its kernel at once.

PyTorch's dispatcher costs a call some 25 µs, and a registered gradient as much again, which is as long as a convolution
of a few cells takes. They may be left out where they would only pass the arguments on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad, profiler
from torch.nn import Parameter

_NUMBERS = (str, bool, int, float, type(None))


# What is not meant for others may be missing in a later PyTorch: then every call takes the dispatcher. The functions
# are at hand because looking them up takes as long as calling them.
try:
    from torch._C import DispatchKey, DispatchKeySet
    from torch._C import _any_requires_grad as _learning
    from torch._C import _dispatch_keys as _keys
    from torch._C import _dispatch_tls_is_dispatch_key_excluded as _excluded
    from torch._C import _dispatch_tls_local_include_set as _in_force
    from torch._C import _len_torch_function_stack as _function_modes
    from torch.autograd import _profiler_enabled as _profiled

    _KNOWN = isinstance(forward_ad._current_level, int) and isinstance(profiler._is_profiler_enabled, bool)
except (ImportError, AttributeError):
    _KNOWN = False


def _others(*names: str) -> int:
    """The bits of all dispatch keys but these."""
    bits = 0
    for name in names if _KNOWN else ():
        bits |= DispatchKeySet(getattr(DispatchKey, name)).raw_repr()
    return ~bits


_IN_FORCE = _others("BackendSelect", "ADInplaceOrView")
_OF_A_TENSOR = _others("CPU", "ADInplaceOrView", "AutogradCPU", "AutocastCPU")


def possible(arguments: Sequence[Any]) -> bool:
    """Whether the dispatcher would take these arguments to the kernel as they are, or to its gradient first.

    It does more in a mode (of a compiler, a profiler, ``torch.func``, the user's own), in forward-mode derivatives, for
    subclasses of tensors and lazily negated ones. Only calls on the CPU are looked at.
    """
    return (
        _KNOWN
        and not _in_force().raw_repr() & _IN_FORCE
        and not _function_modes()
        and not _profiled()
        and not profiler._is_profiler_enabled  # of all threads
        and forward_ad._current_level < 0
        and _are_plain(arguments)
    )


def _are_plain(arguments: Sequence[Any], lists: bool = True) -> bool:
    """``lists``: whether they may be among them. PyTorch finds gradients in lists only, and not in lists of lists."""
    for x in arguments:
        kind = type(x)
        if kind is Tensor or kind is Parameter:
            if _keys(x).raw_repr() & _OF_A_TENSOR:
                return False
        elif kind is list and lists:
            if not _are_plain(x, lists=False):
                return False
        elif kind is tuple:
            if not all(type(value) in _NUMBERS for value in x):
                return False
        elif kind not in _NUMBERS and isinstance(x, list | Tensor):
            return False
    return True


def has_gradient(arguments: Sequence[Any]) -> bool:
    """Whether autograd has to record the call."""
    return torch.is_grad_enabled() and _learning(*arguments)


def records_gradients() -> bool:
    """Not inside the kernel of another op, which has a gradient of its own."""
    return not _excluded(DispatchKey.AutogradFunctionality)

"""What a call of a module runs besides the forward of its class: an op that takes the call's place must not skip it."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as torch_module


def customized(module: nn.Module) -> bool:
    """Whether a call of the module runs hooks of its own, or a forward set on the object."""
    return bool(
        "forward" in vars(module)
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def anywhere() -> bool:
    """Whether hooks are registered for all modules, by ``register_module_forward_hook`` and its like."""
    return bool(torch_module._has_any_global_hook())

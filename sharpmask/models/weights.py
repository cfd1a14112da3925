"""Loading tensors into a model."""

from __future__ import annotations

from torch import nn

from ..errors import DataError
from ..tensor_files import StateDict, check_values


def load_tensors(model: nn.Module, state: StateDict, source: str) -> None:
    """Load all tensors of ``state``, which came from the file ``source``, in the model's own dtype.

    Raises ``DataError`` naming the first tensor that does not fit, is not finite or holds no floating-point numbers.
    """
    own = model.state_dict()
    for name in sorted(own.keys() ^ state.keys()):
        raise DataError(f"{source}: tensor {name} is {'missing' if name in own else 'not part of the model'}")
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise DataError(f"{source}: {name} must be {tuple(own[name].shape)}, got {tuple(tensor.shape)}")
    check_values(state, source)
    model.load_state_dict(state)

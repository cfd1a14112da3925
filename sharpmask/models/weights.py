"""Weights from files: tensors by name, and their loading into a model."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import DataError

StateDict = dict[str, Tensor]
"""Tensors by name."""


def read_state_dict(path: Path) -> StateDict:
    """Tensors by name from a .safetensors file, or from a .pth file without running pickled code.

    Raises ``DataError`` for a missing or unreadable file, and for one that holds anything but dense tensors.
    """
    if not path.is_file():
        raise DataError(f"weights: no file {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # both readers raise many types on hostile or truncated files
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"weights: cannot read {path}: {reason}") from error
    for name, value in state.items():
        if not (isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided):
            raise DataError(f"weights: {path}: expected dense tensors by name, got {type(value).__name__} {name!r}")
    return state


def load_tensors(model: nn.Module, state: StateDict, source: str) -> None:
    """Load all tensors of ``state``, which came from the file ``source``, in the model's own dtype.

    Raises ``DataError`` naming the first tensor that does not fit.
    """
    own = model.state_dict()
    for name in sorted(own.keys() ^ state.keys()):
        raise DataError(f"{source}: tensor {name} is {'missing' if name in own else 'not part of the model'}")
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise DataError(f"{source}: {name} must be {tuple(own[name].shape)}, got {tuple(tensor.shape)}")
    model.load_state_dict(state)

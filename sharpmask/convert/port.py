"""Weights of the public PyTorch port of DeepMask.

Its names differ, and its linear layers are 1x1 and f x f convolutions. Its 3x3 convolutions in the trunk pad by
reflection.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from torch import Tensor

from ..errors import DataError
from ..models import ModelConfig
from ..models.build import without_memory
from ..plain import from_plain
from ..tensor_files import StateDict, check_values, read_pytorch
from .converted import Converted, finished

NAMES = {
    r"trunk\.0\.0(\.1)?\.": "trunk.conv1.",
    r"trunk\.0\.1\.": "trunk.bn1.",
    r"trunk\.0\.4\.": "trunk.layer1.",
    r"trunk\.0\.5\.": "trunk.layer2.",
    r"trunk\.0\.6\.": "trunk.layer3.",
    r"trunk\.1\.0\.": "reduce.",
    r"trunk\.1\.2\.": "encode.",
    r"maskBranch\.0(\.0)?\.": "mask.",
    r"scoreBranch\.": "score.",
}
"""How names start in the port (patterns), and how they start here."""


def read_port(path: Path) -> StateDict:
    """The tensors by name of a checkpoint of the port: plain, or under "state_dict" beside other training state."""
    saved = read_pytorch(path, "model")
    state = saved.get("state_dict", saved) if isinstance(saved, dict) else saved
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) and isinstance(k, str) for k, v in state.items()):
        raise DataError(f"{path}: expected tensors by name, got {type(state).__name__}")
    if sum(tensor.numel() for tensor in state.values()) > path.stat().st_size:
        raise DataError(f"{path}: the tensors are larger than the file")
    return {name.removeprefix("module."): value for name, value in state.items()}


def from_port(state: StateDict, source: str) -> Converted:
    """DeepMask from a state_dict of the port, which came from the file ``source``."""
    named = {_own_name(k): v for k, v in state.items()}
    model = without_memory(_config(named, source), source)
    taken = {}
    for name, tensor in model.state_dict().items():
        got = named.pop(name, None)
        # A linear layer here is a convolution there, whose kernel is flattened.
        fits = got is not None and tensor.shape in (got.shape, got.flatten(1).shape if got.ndim == 4 else got.shape)
        if got is None or not fits:
            shape = "none" if got is None else tuple(got.shape)
            raise DataError(f"{source}: {name} must be {tuple(tensor.shape)}, got {shape}")
        check_values({name: got}, source)
        taken[name] = got.float().reshape(tensor.shape)
    model.load_state_dict(taken, assign=True)
    return Converted(finished(model), sorted(k for k in named if not k.endswith("num_batches_tracked")))


def _own_name(name: str) -> str:
    """A name of the port as this package's. Padding modules make conv2 a sequence there; its second part is conv2."""
    name = name.replace(".conv2.1.", ".conv2.")
    for pattern, own in NAMES.items():
        if re.match(pattern, name):
            return re.sub(pattern, own, name, count=1)
    return name


def _config(named: StateDict, source: str) -> ModelConfig:
    """The settings of the same widths; the tensors are then compared with the model's."""
    shapes = {}
    for name in ("reduce", "encode", "mask", "score.1"):
        key = f"{name}.weight"
        if key not in named or named[key].ndim != 4:
            raise DataError(f"{source}: expected a state_dict of the PyTorch port of DeepMask; {key} is missing")
        shapes[name] = named[key].shape
    settings = {
        "architecture": "deepmask",
        "window": 16 * shapes["encode"][2],
        "features": shapes["reduce"][0],
        "code": shapes["encode"][0],
        "mask_side": math.isqrt(shapes["mask"][0]),
        "score_hidden": shapes["score.1"][0],
        "trunk_padding": "reflect",
    }
    return from_plain(ModelConfig, settings, source)

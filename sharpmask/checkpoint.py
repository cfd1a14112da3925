"""Checkpoints: a safetensors file with a model's tensors and, as JSON in its header, its configuration.

Nothing is unpickled, and a file's configuration is compared with its tensors before any memory is taken.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from .errors import DataError
from .family import checkpoint_path
from .files import atomic
from .models import DeepMask, ModelConfig, SearchConfig, from_config
from .models.build import without_memory
from .models.weights import load_tensors
from .plain import from_plain, to_plain
from .ranges import shown
from .tensor_files import TensorFile, check_values, read_safetensors

FORMAT = "sharpmask-1"
"""Name and version of the format, in every checkpoint's header."""


def save_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> None:
    """Write a safetensors file atomically: a reader sees the old file or the whole new one."""
    with atomic(path) as part:
        # Not save_file, whose files only their owner may read.
        part.write_bytes(save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, dict(metadata)))


def save_model(
    model: DeepMask,
    path: str | Path,
    *,
    training: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write ``model`` with its configuration.

    ``training``: a record of how the model was made, kept in the header. ``dtype``: of the tensors in the file;
    torch.float16 halves its size, and loading converts the weights back to fp32. Raises ``DataError`` for weights
    that are not finite, or would not be in ``dtype``.
    """
    header = {
        "format": FORMAT,
        "model": json.dumps(to_plain(model.config)),
        "search": json.dumps(to_plain(model.search)),
        "training": json.dumps(training or {}),
    }
    state = {k: v if dtype is None else v.to(dtype) for k, v in model.state_dict().items()}
    check_values(state, f"{path}: not written")
    save_tensors(state, header, Path(path))


def load_model(path: str | Path | None = None, device: str | torch.device = "cpu") -> DeepMask:
    """The model of a checkpoint, in evaluation mode. ``path``: a file, or "small" (the default) or "base".

    These two names are the models that come with the package. Raises ``DataError`` for a missing, foreign or damaged
    file, for one with tensors that are not finite or hold no floating-point numbers, and for a name whose model did not
    come with the package.
    """
    path = checkpoint_path(path)
    tensors, header = _read(path)
    config = from_plain(ModelConfig, _json(header, "model", path), f"{path}: model")
    search = SearchConfig.stored(_json(header, "search", path), f"{path}: search")
    _check_shapes(config, tensors, path)
    model = from_config(config)
    load_tensors(model, tensors, str(path))
    model.search = search
    return model.eval().to(device)


def read_training(path: str | Path) -> dict[str, Any]:
    """How the model of a checkpoint was made, as recorded in it. Raises ``DataError`` as :func:`load_model`."""
    path = checkpoint_path(path)
    training = _json(_read(path).metadata, "training", path)
    if not isinstance(training, dict):
        raise DataError(f"{path}: training: expected settings by name, got {type(training).__name__}")
    return training


def _read(path: Path) -> TensorFile:
    """A checkpoint's tensors and header. Raises ``DataError`` for a file that is none."""
    found = read_safetensors(path, "checkpoint")
    if found.metadata.get("format") != FORMAT:
        got = shown(found.metadata.get("format"))
        raise DataError(f"{path}: expected a checkpoint of format {FORMAT}, got {got}")
    return found


def _json(header: Mapping[str, str], key: str, path: Path) -> Any:
    try:
        return json.loads(header[key])
    except (KeyError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: the header's {key!r} is missing or not JSON") from error


def _check_shapes(config: ModelConfig, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse a configuration that does not match the tensors, before a hostile width takes memory."""
    own = {k: list(v.shape) for k, v in without_memory(config, str(path)).state_dict().items()}
    shapes = {k: list(v.shape) for k, v in tensors.items()}
    for name in sorted(own.keys() | shapes.keys()):
        if own.get(name) != shapes.get(name):
            raise DataError(f"{path}: tensor {name} must be {own.get(name, 'absent')}, got {shapes.get(name, 'none')}")

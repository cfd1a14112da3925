"""Checkpoints: a safetensors file with a model's tensors and, as JSON in its header, its configuration.

Nothing is unpickled, and a file's configuration is compared with its tensors before any memory is taken.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .errors import DataError
from .files import atomic
from .models import DeepMask, ModelConfig, SearchConfig, from_config
from .models.build import without_memory
from .models.weights import load_tensors
from .plain import from_plain, to_plain

FORMAT = "sharpmask-1"
"""Name and version of the format, in every checkpoint's header."""
DEFAULT = "sharpmask_lite0_112.safetensors"
"""The checkpoint that comes with the package."""


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
    torch.float16 halves its size, and loading converts the weights back to fp32.
    """
    header = {
        "format": FORMAT,
        "model": json.dumps(to_plain(model.config)),
        "search": json.dumps(to_plain(model.search)),
        "training": json.dumps(training or {}),
    }
    state = model.state_dict()
    save_tensors({k: v if dtype is None else v.to(dtype) for k, v in state.items()}, header, Path(path))


def load_model(path: str | Path | None = None, device: str | torch.device = "cpu") -> DeepMask:
    """The model of a checkpoint, in evaluation mode; without ``path``, the one that comes with the package.

    Raises ``DataError`` for a missing, foreign or damaged file.
    """
    path = Path(path) if path is not None else Path(str(files("sharpmask") / "assets" / DEFAULT))
    with _opened(path) as (file, header):
        config = from_plain(ModelConfig, _json(header, "model", path), f"{path}: model")
        search = from_plain(SearchConfig, _json(header, "search", path), f"{path}: search")
        _check_shapes(config, {k: file.get_slice(k).get_shape() for k in file.keys()}, path)  # noqa: SIM118
        state = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    model = from_config(config)
    load_tensors(model, state, str(path))
    model.search = search
    return model.eval().to(device)


def read_training(path: str | Path) -> dict[str, Any]:
    """How the model of a checkpoint was made, as recorded in it. Raises ``DataError`` as :func:`load_model`."""
    with _opened(Path(path)) as (_, header):
        training = _json(header, "training", Path(path))
    if not isinstance(training, dict):
        raise DataError(f"{path}: training: expected settings by name, got {type(training).__name__}")
    return training


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """A checkpoint's file and header. Errors of reading become ``DataError``."""
    if not path.is_file():
        raise DataError(f"checkpoint: no file {path}")
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise DataError(f"{path}: expected a checkpoint of format {FORMAT}, got {header.get('format')!r}")
            yield file, header
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: not a checkpoint: {str(error).splitlines()[0]}") from error


def _json(header: Mapping[str, str], key: str, path: Path) -> Any:
    try:
        return json.loads(header[key])
    except (KeyError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: the header's {key!r} is missing or not JSON") from error


def _check_shapes(config: ModelConfig, shapes: Mapping[str, list[int]], path: Path) -> None:
    """Refuse a configuration that does not match the tensors, before a hostile width takes memory."""
    own = {k: list(v.shape) for k, v in without_memory(config, str(path)).state_dict().items()}
    for name in sorted(own.keys() | shapes.keys()):
        if own.get(name) != shapes.get(name):
            raise DataError(f"{path}: tensor {name} must be {own.get(name, 'absent')}, got {shapes.get(name, 'none')}")

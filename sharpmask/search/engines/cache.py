"""Graphs kept on disk, each with a hash of what it was made of and of its content."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sharpmask_kernels.machine import cache_folder
from sharpmask_kernels.verdicts import version

from ... import models
from ...files import atomic
from ...models import DeepMask
from ...models.inference import is_plain
from .core import core

if TYPE_CHECKING:
    import openvino

log = logging.getLogger("sharpmask")


def folder() -> Path:
    """Where graphs are kept: ``$SHARPMASK_CACHE``, else ``sharpmask`` in the user's folder of caches."""
    if own := os.environ.get("SHARPMASK_CACHE"):
        return Path(own)
    return cache_folder()


def kept(model: DeepMask, name: str, make: Callable[[], openvino.Model]) -> openvino.Model:
    """The graph called ``name`` of a model, read from disk or else made and written there.

    What others may have written or what is damaged is made anew. A model with hooks or foreign modules, whose tensors
    do not tell what it computes, is not kept.
    """
    if not is_plain(model):
        return make()
    key = key_of(model, name)
    path = folder() / f"{key}.safetensors"
    found = _read(path, key)
    if found is None:
        found = make()
        try:
            _write(path, key, found)
        # On a full disk OpenVINO raises a RuntimeError and safetensors an error of its own.
        except (OSError, RuntimeError, SafetensorError) as error:
            log.warning("%s: the graph cannot be kept: %s", path, getattr(error, "strerror", None) or error)
    return found


def key_of(model: DeepMask, name: str) -> str:
    """A hash of the model's layers and tensors, of the graph's name, and of the software that makes it."""
    versions = [f"{package} {version(package)}" for package in ("sharpmask", "openvino", "nncf", "torch")]
    digest = hashlib.sha256("\n".join([name, *versions, sources(), repr(model)]).encode())
    for tensor in [*model.parameters(), *model.buffers()]:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


@functools.cache
def sources() -> str:
    """A hash of the modules that a graph is made by."""
    places = (Path(__file__).parent, Path(models.__file__).parent)
    paths = sorted(path for place in places for path in place.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def _read(path: Path, key: str) -> openvino.Model | None:
    """The graph in a file, or None if there is none, or one of other origin or content than this program wrote."""
    import openvino

    try:
        if not _is_own(path):
            return None
        with safe_open(path, "numpy") as file:
            graph, weights = file.get_tensor("graph"), file.get_tensor("weights")
            if (file.metadata() or {}).get("sha256") != _seal(key, graph, weights):
                log.warning("%s: damaged, so the graph is made anew", path)
                return None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, SafetensorError) as error:
        log.warning("%s: damaged, so the graph is made anew: %s", path, error)
        return None
    return core().read_model(graph.tobytes(), openvino.Tensor(weights, shared_memory=False))


def _is_own(path: Path) -> bool:
    """Whether the file is this user's and nobody else may write it."""
    found = path.stat()
    own = os.name != "posix" or (found.st_uid == os.getuid() and not found.st_mode & 0o022)
    if not own:
        log.warning("%s: others may have written it, so the graph is made anew", path)
    return own


def _write(path: Path, key: str, graph: openvino.Model) -> None:
    import openvino

    with tempfile.TemporaryDirectory() as temporary:
        xml = Path(temporary) / "graph.xml"
        openvino.save_model(graph, xml, compress_to_fp16=False)
        parts = [np.fromfile(file, dtype=np.uint8) for file in (xml, xml.with_suffix(".bin"))]
    with atomic(path) as part:
        save_file({"graph": parts[0], "weights": parts[1]}, part, {"sha256": _seal(key, *parts)})
        part.chmod(0o600)


def _seal(key: str, *parts: np.ndarray) -> str:
    digest = hashlib.sha256(key.encode())
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part.tobytes())
    return digest.hexdigest()

"""Files of tensors that others made: what they are is said, and nothing in them is run.

A file is read whole before anything is taken from it. A mapped one that another program cuts off meanwhile would
end this process.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from .errors import DataError
from .ranges import shown

Role = Literal["checkpoint", "weights", "model", "state"]
StateDict = dict[str, Tensor]
"""Tensors by name."""

MAX_BYTES = 1 << 33
"""Largest file that is read: eight times the largest model's weights."""
EXPECTED: dict[Role, str] = {
    "checkpoint": "a checkpoint of sharpmask",
    "weights": "tensors by name (.safetensors, or a state_dict saved by PyTorch)",
    "state": "the state of a training run",
    "model": "a model.t7 of the authors, or weights of the PyTorch port of DeepMask",
}
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
STARTS = (
    (b"version https://git-lfs", "a Git LFS pointer; `git lfs pull` fetches the file itself"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x1f\x8b", "a gzip archive; unpack it"),
    (b"\xfd7zXZ", "an xz archive; unpack it"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"GGUF", "a GGUF file"),
)
"""How files of other kinds start."""
PICKLE, ZIP = b"\x80", b"PK"
LARGEST_HEADER = 100_000_000  # bytes, of a safetensors file


class TensorFile(NamedTuple):
    """What a safetensors file holds."""

    tensors: StateDict
    metadata: dict[str, str]


def read_whole(path: Path, role: Role) -> bytes:
    """A file's bytes. Raises ``DataError`` if it is missing, too large or plainly of another kind."""
    if path.is_dir():
        raise wrong_file(path, role, "a folder")
    if not path.exists():
        raise DataError(f"{role}: no file {path}")
    if not path.is_file():
        raise wrong_file(path, role, "no regular file")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise wrong_file(path, role, f"{size} bytes, and at most {MAX_BYTES} are read")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{role}: {path} cannot be read: {error.strerror or error}") from error
    if not data:
        raise wrong_file(path, role, "an empty file")
    kind = next((kind for start, kind in STARTS if data.startswith(start)), None)
    if re.match(rb"\s*(<!doctype html|<html|<\?xml|<head)", data[:200].lower()):
        kind = "a web page; download the file itself"
    if kind is not None:
        raise wrong_file(path, role, kind)
    return data


def read_safetensors(path: Path, role: Role) -> TensorFile:
    """The tensors and metadata of a safetensors file. Raises ``DataError`` for any other file."""
    data = read_whole(path, role)
    if _is_pytorch(data):
        raise wrong_file(path, role, "a file of PyTorch; the models that `sharpmask convert` reads can be converted")
    return _safetensors(data, path, role)


def read_state_dict(path: Path) -> StateDict:
    """Tensors by name from a safetensors file, or from one of PyTorch without running pickled code.

    Raises ``DataError`` for a missing or unreadable file, and for one that holds anything but dense tensors.
    """
    state = read_pytorch(path, "weights")
    if not isinstance(state, dict):
        raise wrong_file(path, "weights", f"a {type(state).__name__}")
    for name, value in state.items():
        if not (isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided):
            hint = "; save what lies under it" if isinstance(value, dict) else ""
            raise wrong_file(path, "weights", f"{type(value).__name__} {shown(name)}{hint}")
    if sum(tensor.numel() for tensor in state.values()) > path.stat().st_size:
        raise wrong_file(path, "weights", "tensors larger than the file")
    return dict(state)


def read_pytorch(path: Path, role: Role) -> Any:
    """What a file of PyTorch holds, or the tensors of a safetensors file. No pickled code is run."""
    data = read_whole(path, role)
    if not _is_pytorch(data):
        return _safetensors(data, path, role).tensors
    if data.startswith(ZIP):
        _check_zip(data, path, role)
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many types on hostile or damaged files
        raise wrong_file(path, role, _pickled(str(error))) from error


def check_values(state: Mapping[str, Tensor], source: str) -> None:
    """Raise ``DataError`` that names the first tensor that is no floating-point one, or not finite as fp32."""
    for name, tensor in state.items():
        if tensor.dtype not in FLOATS:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
            raise DataError(f"{source}: tensor {name} must be one of {known}, got {str(tensor.dtype)[6:]}")
        bad = int((~tensor.float().isfinite()).sum())
        if bad:
            raise DataError(f"{source}: tensor {name} must be finite, got NaN or infinity in {bad} of {tensor.numel()}")
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise DataError(f"{source}: tensor {name} must be at least 0, got {float(tensor.min())}")


def wrong_file(path: Path, role: Role, got: str) -> DataError:
    """The error for a file that is something else than its role asks for."""
    return DataError(f"{role}: {path} must be {EXPECTED[role]}, got {got}")


def is_safetensors(data: bytes) -> bool:
    """Whether a file begins as a safetensors file does."""
    return data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= LARGEST_HEADER


def _is_pytorch(data: bytes) -> bool:
    """Whether it is a file of PyTorch, and no safetensors file whose header's length begins with the same bytes."""
    return data.startswith((PICKLE, ZIP)) and not is_safetensors(data)


def _safetensors(data: bytes, path: Path, role: Role) -> TensorFile:
    size = int.from_bytes(data[:8], "little")
    if len(data) < 10 or data[8:9] != b"{" or size > LARGEST_HEADER:
        raise wrong_file(path, role, "a file of an unknown kind")
    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + size])
    except (SafetensorError, ValueError, RecursionError, KeyError, TypeError, RuntimeError) as error:
        short = "not fully covered" in str(error) or size + 8 > len(data)
        kind = "a file that is cut off or damaged; fetch it again" if short else f"a damaged file: {shown(str(error))}"
        raise wrong_file(path, role, kind) from error
    return TensorFile(tensors, header.get("__metadata__") or {})


def _check_zip(data: bytes, path: Path, role: Role) -> None:
    """Refuse archives that are no saved tensors, or that unpack to more than the file."""
    try:
        entries = zipfile.ZipFile(io.BytesIO(data)).infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        raise wrong_file(path, role, "a file that is cut off or damaged; fetch it again") from error
    names = {entry.filename.rpartition("/")[2] for entry in entries}
    if "constants.pkl" in names:
        raise wrong_file(path, role, "a TorchScript program; save its state_dict() instead")
    if "data.pkl" not in names:
        raise wrong_file(path, role, "a zip archive of something else")
    if sum(entry.file_size for entry in entries) > len(data):
        raise wrong_file(path, role, "an archive that unpacks to more than the file")


def _pickled(message: str) -> str:
    """What a pickle is, from PyTorch's message about why it was not loaded."""
    found = re.search(r"GLOBAL ([\w.]+)", message)
    if found is None:
        return "a pickle that is damaged or cut off, or holds more than tensors"
    what = "NumPy arrays" if found[1].startswith("numpy") else f"a pickled object of {shown(found[1])}"
    return f"{what}, which is not read because it could run code; save the model's state_dict() of tensors"

"""The authors' released models, and those of the public PyTorch port, as models of this package."""

from __future__ import annotations

from pathlib import Path

from ..tensor_files import is_safetensors, read_whole, wrong_file
from .converted import Converted
from .port import from_port, read_port
from .released import Released
from .torch7 import load

__all__ = ["Converted", "convert"]


def convert(path: str | Path) -> Converted:
    """The model in a file: a released DeepMask or SharpMask (Torch 7), or a state_dict of the PyTorch port of
    DeepMask (read without running pickled code).

    Its ``search`` has the released geometry. Raises ``DataError`` naming what does not fit.
    """
    path = Path(path)
    start = read_whole(path, "model")[:9]
    if is_safetensors(start):
        raise wrong_file(path, "model", "a safetensors file; a checkpoint of this package needs no conversion")
    # A zip archive or a pickle is PyTorch's; a Torch 7 file starts with a small integer.
    if start[:2] in (b"PK", b"\x80\x02"):
        return from_port(read_port(path), str(path))
    return Released(load(path), path).convert()

"""Writes the binary format of Torch 7, for tests of its reader."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

CODES = {"u1": "Byte", "i1": "Char", "i2": "Short", "i4": "Int", "i8": "Long", "f2": "Half", "f4": "Float"}
CODES |= {"f8": "Double"}


@dataclass(eq=False)
class Obj:
    """An instance of the class ``name`` with some fields."""

    name: str
    fields: Any = field(default_factory=dict)


@dataclass(eq=False)
class Storage:
    values: np.ndarray
    cuda: bool = False


@dataclass(eq=False)
class Tensor:
    """A tensor over ``storage``; strides and offset in elements."""

    storage: Storage | None
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0

    @classmethod
    def of(cls, values: np.ndarray, cuda: bool = False) -> Tensor:
        values = np.asarray(values)
        contiguous = np.ascontiguousarray(values)
        strides = tuple(s // values.itemsize for s in contiguous.strides)
        return cls(Storage(contiguous.ravel(), cuda), values.shape, strides)


@dataclass(eq=False)
class Function:
    dump: bytes
    upvalues: Any = field(default_factory=dict)
    kind: int = 8


class Writer:
    """``referenced``: whether an object that occurs again is written as a reference. ``versions``: whether class
    versions are written, as all but the oldest files have them."""

    def __init__(self, referenced: bool = True, versions: bool = True) -> None:
        self.out = bytearray()
        self.referenced, self.versions = referenced, versions
        self.indices: dict[int, int] = {}
        self.count = 0
        self.alive: list[Any] = []

    def pack(self, layout: str, *values: Any) -> None:
        self.out += struct.pack("<" + layout, *values)

    def text(self, value: str) -> None:
        encoded = value.encode("latin-1")
        self.pack("i", len(encoded))
        self.out += encoded

    def write(self, value: Any) -> Writer:
        if value is None:
            self.pack("i", 0)
        elif isinstance(value, bool):
            self.pack("ii", 5, value)
        elif isinstance(value, int | float):
            self.pack("id", 1, value)
        elif isinstance(value, str):
            self.pack("i", 2)
            self.text(value)
        else:
            self.shared(value)
        return self

    def shared(self, value: Any) -> None:
        self.pack("i", 3 if isinstance(value, Mapping | list) else value.kind if isinstance(value, Function) else 4)
        if not (isinstance(value, Function) and value.kind == 6):
            if self.referenced and id(value) in self.indices:
                self.pack("i", self.indices[id(value)])
                return
            self.count += 1
            self.indices[id(value)] = self.count
            self.alive.append(value)
            self.pack("i", self.count)
        self.content(value)

    def content(self, value: Any) -> None:
        if isinstance(value, list):
            value = dict(enumerate(value, 1))
        if isinstance(value, Mapping):
            self.pack("i", len(value))
            for key, entry in value.items():
                self.write(key).write(entry)
        elif isinstance(value, Function):
            self.pack("i", len(value.dump))
            self.out += value.dump
            self.write(value.upvalues)
        elif isinstance(value, Storage):
            self.class_name(storage_class(value))
            self.pack("q", value.values.size)
            self.out += value.values.tobytes()
        elif isinstance(value, Tensor):
            self.class_name(storage_class(value.storage).replace("Storage", "Tensor"))
            n = len(value.size)
            self.pack(f"i{n}q{n}qq", n, *value.size, *value.stride, value.offset + 1)
            self.write(value.storage)
        else:
            self.class_name(value.name)
            self.write(value.fields)

    def class_name(self, name: str) -> None:
        if self.versions:
            self.text("V 1")
        self.text(name)


def storage_class(storage: Storage | None) -> str:
    code = storage.values.dtype.str[1:] if storage is not None else "f4"
    cuda = storage is not None and storage.cuda
    name = "" if cuda and code == "f4" else CODES[code]
    return f"torch.{'Cuda' if cuda else ''}{name}Storage"


def dump(value: Any, **options: bool) -> bytes:
    return bytes(Writer(**options).write(value).out)


def save(value: Any, path: Path, **options: bool) -> Path:
    path.write_bytes(dump(value, **options))
    return path

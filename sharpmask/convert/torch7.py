"""Reader of files that Torch 7 wrote with ``torch.save`` in its binary format; safe for files of unknown origin.

A file is one object. An object starts with its type: nil, number, string, boolean, table, function or instance
of a class. The last three carry an index, by which later occurrences refer to the first. Numbers are 64-bit
floats; counts and types are 32-bit integers, sizes and strides 64-bit integers, all little-endian.

Nothing in a file is run: functions are skipped, and classes other than tensors and storages become plain data.
Tensors are views of the file's bytes, which are read whole. ``MAX_VALUES`` and the file's size limit everything else.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from ..tensor_files import read_whole

MAX_DEPTH = 100
"""Levels of objects in objects; the released models have 25."""
MAX_VALUES = 1 << 20
"""Values in one file; the released models have some ten thousand."""
MAX_NAME = 256
"""Bytes of a class's name."""
MAX_DIMENSIONS = 32

NIL, NUMBER, STRING, TABLE, INSTANCE, BOOLEAN, FUNCTION, OLD_CLOSURE, CLOSURE = range(9)

ELEMENTS = {
    "Byte": "u1",
    "Char": "i1",
    "Short": "i2",
    "Int": "i4",
    "Long": "i8",
    "Half": "f2",
    "Float": "f4",
    "Double": "f8",
}
DTYPES = {
    f"torch.{device}{name}": np.dtype(f"<{code}")
    for device in ("", "Cuda")
    for name, code in (ELEMENTS | ({"": "f4"} if device else {})).items()
}
"""Data type by class name, without its ending "Storage" or "Tensor"."""


@dataclass(eq=False)
class Table:
    """A Lua table. Keys that are whole numbers are ``int``; tables and instances as keys compare by identity."""

    values: dict[Any, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Instance:
    """An instance of a class: the class's name in Torch, and the instance's data, usually a :class:`Table`."""

    name: str
    data: Any = None


@dataclass(eq=False)
class Array:
    """A tensor or a storage: a read-only view of the file, and the number of elements in its storage."""

    name: str
    values: npt.NDArray[Any]
    stored: int


def load(path: str | Path) -> Any:
    """The object in a file: None, float, bool, str (one character per byte), :class:`Table`, :class:`Instance` or
    :class:`Array`.

    Objects may contain one another in circles. Raises ``DataError`` for a missing file, for one that is damaged,
    too deep or too long, for the text format, and for a class that is stored in a layout of its own.
    """
    path = Path(path)
    return parse(read_whole(path, "model"), str(path))


def parse(source: bytes, name: str) -> Any:
    """The object in the bytes ``source``, called ``name`` in errors. See :func:`load`."""
    return _Reader(source, name).read(0)


class _Reader:
    def __init__(self, source: bytes, name: str) -> None:
        self.source, self.name = source, name
        self.at = self.count = 0
        self.known: dict[int, Any] = {}

    def error(self, what: str) -> DataError:
        return DataError(f"{self.name}: not a Torch 7 file that can be read: {what} at byte {self.at}")

    def skip(self, size: int) -> int:
        """Step over ``size`` bytes, which must be there; returns where they start."""
        start = self.at
        if not 0 <= size <= len(self.source) - start:
            raise self.error(f"expected {size} more bytes, got {len(self.source) - start}")
        self.at += size
        return start

    def unpack(self, code: str, count: int = 1) -> tuple[Any, ...]:
        layout = f"<{count}{code}"
        return struct.unpack_from(layout, self.source, self.skip(struct.calcsize(layout)))

    def integer(self) -> int:
        return int(self.unpack("i")[0])

    def text(self, limit: int | None = None) -> str:
        size = self.integer()
        if limit is not None and size > limit:
            raise self.error(f"expected a name of at most {limit} bytes, got {size}")
        start = self.skip(size)
        return self.source[start : self.at].decode("latin-1")

    def read(self, depth: int) -> Any:
        self.count += 1
        if self.count > MAX_VALUES:
            raise self.error(f"expected at most {MAX_VALUES} values, got more")
        if depth > MAX_DEPTH:
            raise self.error(f"expected at most {MAX_DEPTH} objects in one another, got more")
        kind = self.integer()
        if kind == NIL:
            return None
        if kind == NUMBER:
            return self.unpack("d")[0]
        if kind == BOOLEAN:
            return self.integer() == 1
        if kind == STRING:
            return self.text()
        if kind == FUNCTION:
            return self.function(Instance("function"), depth)
        if kind not in (TABLE, INSTANCE, OLD_CLOSURE, CLOSURE):
            raise self.error(f"expected a type from 0 to {CLOSURE}, got {kind}")
        index = self.integer()
        if index in self.known:
            return self.known[index]
        if kind == TABLE:
            return self.table(self.remember(index, Table()), depth)
        if kind == INSTANCE:
            return self.instance(index, depth)
        return self.function(self.remember(index, Instance("function")), depth)

    def remember(self, index: int, value: Any) -> Any:
        """Register an object before its content is read, because the content may refer to it."""
        self.known[index] = value
        return value

    def function(self, function: Instance, depth: int) -> Instance:
        self.skip(self.integer())
        self.read(depth + 1)
        return function

    def table(self, table: Table, depth: int) -> Table:
        for _ in range(self.integer()):
            key, value = self.read(depth + 1), self.read(depth + 1)
            if key is None or key != key:
                raise self.error(f"expected a key of a table, got {key}")
            whole = isinstance(key, float) and key.is_integer()
            table.values[int(key) if whole else key] = value
        return table

    def instance(self, index: int, depth: int) -> Any:
        name = self.text(MAX_NAME)
        if name.startswith("V "):  # the class's version; the oldest files have none
            name = self.text(MAX_NAME)
        for ending, read in (("Storage", self.storage), ("Tensor", self.tensor)):
            dtype = DTYPES.get(name.removesuffix(ending)) if name.endswith(ending) else None
            if dtype is not None:
                return self.remember(index, read(name, dtype, depth))
        instance = self.remember(index, Instance(name))
        instance.data = self.read(depth + 1)
        return instance

    def storage(self, name: str, dtype: np.dtype[Any], _: int) -> Array:
        (size,) = self.unpack("q")
        start = self.skip(size * dtype.itemsize)
        return Array(name, np.frombuffer(self.source, dtype, size, start), size)

    def tensor(self, name: str, dtype: np.dtype[Any], depth: int) -> Array:
        dimensions = self.integer()
        if not 0 <= dimensions <= MAX_DIMENSIONS:
            raise self.error(f"expected a tensor of at most {MAX_DIMENSIONS} dimensions, got {dimensions}")
        sizes, strides = self.unpack("q", dimensions), self.unpack("q", dimensions)
        first = self.unpack("q")[0] - 1
        storage = self.read(depth + 1)
        if storage is None or not dimensions:
            return Array(name, np.zeros(0, dtype), 0)
        if not isinstance(storage, Array) or storage.values.dtype != dtype or storage.values.ndim != 1:
            raise self.error(f"expected the storage of a {name}")
        if min(sizes) < 0 or min(strides) < 0:
            raise self.error(f"expected sizes and strides from 0 on, got {sizes} and {strides}")
        last = first + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        if 0 in sizes:
            return Array(name, np.zeros(0, dtype), storage.stored)
        if first < 0 or last >= storage.stored or math.prod(sizes) > storage.stored:
            raise self.error(f"a tensor of {sizes}, strides {strides} from {first} exceeds its {storage.stored} values")
        steps = [stride * dtype.itemsize if size > 1 else 0 for size, stride in zip(sizes, strides, strict=True)]
        view = np.lib.stride_tricks.as_strided(storage.values[first:], sizes, steps, writeable=False)
        return Array(name, view, storage.stored)

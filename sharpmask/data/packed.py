"""Photos and their objects in a few arrays, which the processes that make batches share.

A process that reads a Python object writes its count of references, and so gets its own copy of the page of memory that
it lies on. Of a list of photos each process would in time have a copy.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Sequence
from dataclasses import fields
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, Protocol, TypeVar, overload

import numpy as np

from .annotations import Polygons
from .objects import Instance

T = TypeVar("T")


class Column(Protocol):
    """One field of all records."""

    def __getitem__(self, place: int, /) -> Any: ...


class Packed(Sequence[T]):
    """A sequence of records, instances of the dataclass ``kind``, kept by field. Each is made anew when it is read."""

    def __init__(self, kind: type[T], records: Sequence[T]) -> None:
        columns: dict[str, Column] = {
            field.name: COLUMNS.get(field.name, Few)([getattr(record, field.name) for record in records])
            for field in fields(kind)  # type: ignore[arg-type]
        }
        self._kind = kind
        self._stores: tuple[dict[str, Column], ...] = (columns,)
        self._places = np.array([(0, place) for place in range(len(records))], np.int64).reshape(-1, 2)

    @classmethod
    def joined(cls, kind: type[T], parts: Sequence[Sequence[T]]) -> Packed[T]:
        """One sequence after the other. Of those that are packed, the arrays are shared."""
        packed = [part if isinstance(part, Packed) else cls(kind, part) for part in parts]
        if len(packed) == 1:
            return packed[0]
        stores: list[dict[str, Column]] = []
        places = [np.empty((0, 2), np.int64)]
        for part in packed:
            places.append(part._places + np.array([len(stores), 0]))
            stores += part._stores
        return cls._of(kind, tuple(stores), np.concatenate(places))

    @classmethod
    def _of(cls, kind: type[T], stores: tuple[dict[str, Column], ...], places: Any) -> Packed[T]:
        own: Packed[T] = object.__new__(cls)
        own._kind, own._stores, own._places = kind, stores, places
        return own

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> Packed[T]: ...
    def __getitem__(self, place: int | slice) -> T | Packed[T]:
        if isinstance(place, slice):
            return self._of(self._kind, self._stores, self._places[place])
        store, own = self._places[place].tolist()
        return self._kind(**{name: column[own] for name, column in self._stores[store].items()})

    def values(self, name: str) -> list[Any]:
        """One field of all records. It makes no records, which takes long where each has many objects."""
        return [self._stores[store][name][own] for store, own in self._places.tolist()]

    def take(self, places: Sequence[int]) -> Packed[T]:
        """The records at some places, in the same arrays."""
        return self._of(self._kind, self._stores, self._places[np.array(places, np.int64)])

    def where(self, keep: Callable[[T], bool]) -> Packed[T]:
        """The records that ``keep`` is true of, in the same arrays."""
        return self.take([place for place, record in enumerate(self) if keep(record)])


class Few:
    """Values of which there are few different ones, each kept once."""

    def __init__(self, values: Sequence[Any]) -> None:
        numbers: dict[Any, int] = {}
        self._numbers = array("i", (numbers.setdefault(value, len(numbers)) for value in values))
        self._values = list(numbers)

    def __getitem__(self, place: int) -> Any:
        return self._values[self._numbers[place]]


def integers(values: Sequence[int]) -> Column:
    """As 64 bits, or where that does not suffice as they are."""
    try:
        return array("q", values)
    except OverflowError:
        return list(values)


def floats(values: Sequence[float]) -> Column:
    return array("d", values)


class Boxes:
    def __init__(self, values: Sequence[tuple[float, ...]]) -> None:
        self._values = array("d", chain.from_iterable(values))

    def __getitem__(self, place: int) -> tuple[float, ...]:
        return tuple(self._values[4 * place : 4 * place + 4])


class Pieces:
    """Byte strings."""

    def __init__(self, values: Sequence[bytes]) -> None:
        self._ends = _ends(values)
        self._all = b"".join(values)

    def __getitem__(self, place: int) -> bytes:
        return self._all[self._ends[place] : self._ends[place + 1]]


class Paths:
    def __init__(self, values: Sequence[Path]) -> None:
        self._names = Pieces([os.fsencode(value) for value in values])

    def __getitem__(self, place: int) -> Path:
        return Path(os.fsdecode(self._names[place]))


class Segmentations:
    """Polygons, or the counts of RLEs."""

    def __init__(self, values: Sequence[Polygons | bytes]) -> None:
        self._counts = Pieces([value if isinstance(value, bytes) else b"" for value in values])
        polygons = [() if isinstance(value, bytes) else value for value in values]
        self._ends = _ends(polygons)
        self._polygons = Pieces([polygon.tobytes() for polygon in chain.from_iterable(polygons)])

    def __getitem__(self, place: int) -> Polygons | bytes:
        own = range(self._ends[place], self._ends[place + 1])
        return tuple(array("d", self._polygons[number]) for number in own) if own else self._counts[place]


class Instances:
    """The objects of each photo."""

    def __init__(self, values: Sequence[tuple[Instance, ...]]) -> None:
        self._ends = _ends(values)
        self._all = Packed(Instance, list(chain.from_iterable(values)))

    def __getitem__(self, place: int) -> tuple[Instance, ...]:
        return tuple(map(self._all.__getitem__, range(self._ends[place], self._ends[place + 1])))


def _ends(values: Sequence[Any]) -> array[int]:
    """Where each of several pieces begins among all, and where the last one ends."""
    return array("q", accumulate(map(len, values), initial=0))


COLUMNS: dict[str, Callable[[Sequence[Any]], Column]] = {
    "id": integers,
    "path": Paths,
    "instances": Instances,
    "box": Boxes,
    "area": floats,
    "segmentation": Segmentations,
}
"""By the name of the field. All others have few different values."""

"""Settings (dataclasses) whose fields say what they may be, and the one place where that is checked.

A number has its range at its field, ``lr: Annotated[float, Range(0, 10)]``, and a list its length. A class that
inherits from :class:`Settings` is checked when an object is made: by Python code, the command line, a YAML file or
a checkpoint alike.
"""

from __future__ import annotations

import reprlib
import types
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

from .errors import DataError

T = TypeVar("T")

_BRIEF = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxother, _BRIEF.maxstring = 3, 80, 80


@dataclass(frozen=True)
class Range:
    """The numbers from ``least`` to ``most``. ``above``, ``below``: without that end itself."""

    least: float
    most: float
    above: bool = False
    below: bool = False
    multiple: int = 1
    """What a whole number must be a multiple of."""

    def __contains__(self, value: float) -> bool:
        low = value > self.least if self.above else value >= self.least
        high = value < self.most if self.below else value <= self.most
        return low and high and (self.multiple == 1 or value % self.multiple == 0)

    def __str__(self) -> str:
        if self.above and self.below:
            return f"strictly between {self.least} and {self.most}"
        low = f"above {self.least} and" if self.above else f"from {self.least}"
        return f"{low} {'below' if self.below else 'at most' if self.above else 'to'} {self.most}"


@dataclass(frozen=True)
class Length:
    """How many entries a list may have, and whether they must differ."""

    least: int
    most: int
    distinct: bool = False


class Settings:
    """Base of dataclasses of settings.

    Making one raises ``DataError`` that names the field, what it must be and what it is. Lists become tuples, and
    texts paths, where the field says so. A subclass with conditions of its own extends ``__post_init__``.
    """

    def __post_init__(self) -> None:
        for name, hint in field_types(type(self)).items():
            object.__setattr__(self, name, convert(hint, getattr(self, name), name))


def field_types(cls: type) -> dict[str, Any]:
    """The type of each field of a dataclass by name, with its annotations."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in fields(cls)}


def convert(hint: Any, value: Any, name: str) -> Any:
    """``value`` as the type ``hint``, which may carry a :class:`Range` or :class:`Length`.

    Numbers, texts, paths, literals, settings, optional ones and tuples of them are checked; any other type is not.
    Raises ``DataError`` that calls the value ``name``.
    """
    if value is tyro.MISSING:  # It stands for an argument that the command line will demand.
        return value
    limit: Range | Length | None = None
    while get_origin(hint) is Annotated:
        hint, *notes = get_args(hint)
        limit = next((note for note in notes if isinstance(note, Range | Length)), limit)
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return convert(next(a for a in args if a is not type(None)), value, name)
    if origin is tuple:
        return _tuple(args, value, name, limit if isinstance(limit, Length) else None)
    if hint in (int, float):
        return number(hint, value, name, limit if isinstance(limit, Range) else None)
    if origin is Literal:
        good = any(type(value) is type(arg) and value == arg for arg in args)
        return _require(good, value, name, "one of " + ", ".join(map(repr, args)))
    if hint is Path:
        return Path(_require(isinstance(value, str | PathLike), value, name, "a path"))
    if hint in (str, bool):
        return _require(isinstance(value, hint), value, name, f"of type {hint.__name__}")
    if isinstance(hint, type) and is_dataclass(hint):
        return _require(isinstance(value, hint), value, name, f"of type {hint.__name__}")
    return value


def number(kind: type[int] | type[float], value: Any, name: str, limit: Range | None) -> Any:
    """``value`` as an ``int`` or ``float`` inside ``limit``. Raises ``DataError`` that calls it ``name``."""
    # YAML reads 1e-3 as a text and only 1.0e-3 as a number.
    if isinstance(value, str) and (kind is float or "e" in value.lower()):
        with suppress(ValueError):
            read = float(value)
            value = int(read) if kind is int and read.is_integer() else read
    noun = "a number" if kind is float else "a whole number"
    if limit is not None and limit.multiple != 1:
        noun = f"a multiple of {limit.multiple}"
    expected = noun if limit is None else f"{noun} {limit}"
    fits = isinstance(value, Real if kind is float else Integral) and not isinstance(value, bool)
    _require(fits, value, name, expected)
    try:
        converted = kind(value)
    except OverflowError:
        raise DataError(f"{name} must be {expected}, got an integer beyond what a float can hold") from None
    _require(limit is None or converted in limit, value, name, expected)
    return converted


def _tuple(args: tuple[Any, ...], value: Any, name: str, limit: Length | None) -> tuple[Any, ...]:
    _require(isinstance(value, list | tuple), value, name, "a list")
    if args[-1] is not Ellipsis:
        limit = Length(len(args), len(args))
    if limit is not None and not limit.least <= len(value) <= limit.most:
        count = f"{limit.least}" if limit.least == limit.most else f"{limit.least} to {limit.most}"
        raise DataError(f"{name} must have {count} entries, got {len(value)}: {shown(value)}")
    hints = args if args[-1] is not Ellipsis else args[:1] * len(value)
    entries = tuple(convert(hint, entry, name) for hint, entry in zip(hints, value, strict=True))
    if limit is not None and limit.distinct:
        _require(len(set(entries)) == len(entries), value, name, "entries that differ")
    return entries


def shown(value: Any) -> str:
    """A value in an error: on one line, and short even if it is a huge number, text or nested list."""
    try:
        return " ".join(_BRIEF.repr(value).split())
    except (ValueError, RecursionError):  # an integer of more digits than Python prints
        return f"a huge {type(value).__name__}"


def _require(condition: bool, value: T, name: str, expected: str) -> T:
    if not condition:
        raise DataError(f"{name} must be {expected}, got {shown(value)}")
    return value

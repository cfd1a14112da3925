"""Settings (dataclasses) as plain data and back, for YAML files and checkpoints. Every field is checked."""

from __future__ import annotations

import types
from contextlib import suppress
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import DataError

T = TypeVar("T")


def to_plain(config: Any) -> dict[str, Any]:
    """A dataclass as nested dicts of str, int, float, bool, None and lists. Paths become str."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, tuple | list):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, Path) else value

    return plain(asdict(config))


def from_plain(cls: type[T], data: Any, source: str, base: T | None = None) -> T:
    """The dataclass ``cls`` from plain ``data``. Missing fields come from ``base``, or without it from the defaults.

    ``source`` names the data in errors. Raises ``DataError`` that names the field, what it must be and what it got.
    """
    if not isinstance(data, dict):
        raise DataError(f"{source}: expected settings by name, got {type(data).__name__}")
    hints = get_type_hints(cls)
    unknown = [str(k) for k in data if k not in hints]
    if unknown:
        raise DataError(f"{source}: unknown setting {unknown[0]!r}; known are {', '.join(hints)}")
    values: dict[str, Any] = {}
    for field in fields(cls):  # type: ignore[arg-type]
        old = getattr(base, field.name) if base is not None else None
        if field.name in data:
            values[field.name] = _convert(hints[field.name], data[field.name], f"{source}: {field.name}", old)
        elif base is not None:
            values[field.name] = old
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:  # A value is missing, or out of the range that the class allows.
        raise DataError(f"{source}: {error}") from error


def _convert(hint: Any, value: Any, name: str, base: Any = None) -> Any:
    """``value`` as the type ``hint``. ``base`` has the missing fields of a nested dataclass."""
    origin, args = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        return from_plain(hint, value, name, base)  # type: ignore[arg-type]
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, name)
    if origin is Literal:
        return _require(value in args, value, name, "one of " + ", ".join(map(repr, args)))
    if origin is tuple:
        _require(isinstance(value, list | tuple), value, name, "a list")
        return tuple(_convert(args[0], v, name) for v in value)
    if hint is Path:
        return Path(_require(isinstance(value, str), value, name, "a path"))
    if hint is float:
        if isinstance(value, str):  # YAML reads 1e-3 as a text and only 1.0e-3 as a number.
            with suppress(ValueError):
                value = float(value)
        _require(isinstance(value, int | float) and not isinstance(value, bool), value, name, "a number")
        try:
            return float(value)
        except OverflowError:
            raise DataError(f"{name} must be a number that a float can hold, got an integer beyond it") from None
    return _require(type(value) is hint, value, name, f"of type {hint.__name__}")


def _require(condition: bool, value: T, name: str, expected: str) -> T:
    if not condition:
        raise DataError(f"{name} must be {expected}, got {value!r}")
    return value

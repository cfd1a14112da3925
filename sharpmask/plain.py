"""Settings (dataclasses) as plain data and back, for YAML files and checkpoints."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import MISSING, asdict, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

from .errors import DataError
from .packages import needed
from .ranges import field_types, shown

T = TypeVar("T")


def read_yaml(path: Path, what: str = "training", extra: str = "train") -> Any:
    """The plain data in a YAML file, in which no name is given twice. No code in it is run.

    Raises ``DataError`` for an unreadable file, and where the package for YAML is missing, which comes with ``extra``.
    """
    yaml = needed("yaml", what, extra)

    class Loader(yaml.SafeLoader):  # type: ignore[name-defined]
        """Refuses a name that is given twice, of which YAML would take the last."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{shown(key.value)} is given twice", key.start_mark
                    )
                seen.add(str(key.value))
            return super().construct_mapping(node, deep)

    if not path.exists():
        raise DataError(f"{path}: must be a YAML file, but there is no such file")
    if not path.is_file():
        raise DataError(f"{path}: must be a YAML file, got {'a folder' if path.is_dir() else 'no regular file'}")
    try:
        return yaml.load(path.read_text(encoding="utf-8-sig"), Loader)
    # ValueError: an integer too long for Python, or bytes that are no text.
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error


def as_yaml(data: Any) -> str:
    """Plain data as YAML."""
    return str(needed("yaml", "training", "train").safe_dump(data, sort_keys=False))


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
    """The settings ``cls`` from plain ``data``. Missing fields come from ``base``, or without it from the defaults.

    The class checks the values, see :mod:`sharpmask.ranges`. ``source`` names the data in errors. Raises
    ``DataError`` that names the field, what it must be and what it got.
    """
    if not isinstance(data, dict):
        raise DataError(f"{source}: expected settings by name, got {type(data).__name__}")
    hints = field_types(cls)
    _check_names(data, list(hints), source)
    values: dict[str, Any] = {}
    for field in fields(cls):  # type: ignore[arg-type]
        old = getattr(base, field.name) if base is not None else None
        if field.name in data:
            values[field.name] = _nested(hints[field.name], data[field.name], f"{source}: {field.name}", old)
        elif base is not None:
            values[field.name] = old
        elif field.default is MISSING and field.default_factory is MISSING:
            raise DataError(f"{source}: {field.name} is missing")
    try:
        return cls(**values)
    except ValueError as error:
        raise DataError(f"{source}: {error}") from error


def _check_names(data: dict[Any, Any], known: list[str], source: str) -> None:
    """Refuse a setting that there is not, with the nearest one that there is."""
    for name in data:
        if name not in known:
            raise DataError(f"{source}: unknown setting {shown(str(name))}{nearest(str(name), known)}")


def nearest(name: str, known: Collection[str]) -> str:
    """The end of an error about an unknown name: the nearest known one, or all of them."""
    near = get_close_matches(name, known, 1)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"


def _nested(hint: Any, value: Any, name: str, base: Any) -> Any:
    """``value``, made into settings if the type ``hint`` is a class of them."""
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    return from_plain(hint, value, name, base) if isinstance(hint, type) and is_dataclass(hint) else value

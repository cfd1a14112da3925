"""Command-line arguments as settings, with one line for a value that the settings refuse."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from dataclasses import replace
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from ..errors import DataError

T = TypeVar("T")
WITHOUT_NONE = ConstructorRegistry()
"""Takes no ``None`` for an optional value, and lists none in help and errors: the option is left out instead."""


@WITHOUT_NONE.primitive_rule
def _optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    kinds = [kind for kind in get_args(info.type) if kind is not NoneType]
    if info.type_origin not in (Union, UnionType) or len(kinds) != 1 or NoneType not in get_args(info.type):
        return None
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kinds[0], info.markers))
    if not isinstance(spec, PrimitiveConstructorSpec):
        return None
    return replace(
        spec,
        is_instance=lambda value: value is None or spec.is_instance(value),
        str_from_instance=lambda value: ["None"] if value is None else spec.str_from_instance(value),
    )


def parse_arguments(cls: type[T], argv: list[str], **options: Any) -> T:
    """The settings ``cls`` from arguments, by ``tyro.cli`` with its ``options``.

    Prints help and usage errors and exits, as command lines do. Raises the ``DataError`` of a value that the
    settings refuse, which tyro alone would print in a box.
    """
    with redirect_stderr(io.StringIO()):
        try:
            return tyro.cli(cls, args=argv, **options)
        except SystemExit as ended:
            if not ended.code:
                raise
            cause: BaseException | None = ended
            while cause is not None and not isinstance(cause, DataError):
                cause = cause.__context__
    if cause is not None:
        raise cause.with_traceback(None) from None
    return tyro.cli(cls, args=argv, **options)

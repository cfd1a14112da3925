"""Optional packages."""

from __future__ import annotations

import warnings
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from .errors import DataError


def check(package: str, what: str, extra: str = "formats") -> None:
    """Raise ``DataError`` that tells how to install ``package`` for ``what``, if it is not installed."""
    if find_spec(package) is None:
        raise DataError(f"{what} needs the package {package}, which is not installed: pip install 'sharpmask[{extra}]'")


def needed(module: str, what: str, extra: str = "formats") -> ModuleType:
    """A module of an optional package. Raises ``DataError`` as ``check`` does."""
    check(module.partition(".")[0], what, extra)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # supervision warns where it has no OpenCV, and works
        return import_module(module)

"""Optional packages that formats need."""

from __future__ import annotations

import warnings
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Final

from ..errors import DataError

INSTALL: Final = "pip install 'sharpmask[formats]'"


def check(package: str, what: str) -> None:
    """Raise ``DataError`` that tells how to install ``package`` for ``what``, if it is not installed."""
    if find_spec(package) is None:
        raise DataError(f"{what} needs the package {package}, which is not installed: {INSTALL}")


def needed(module: str, what: str) -> ModuleType:
    """A module of an optional package. Raises ``DataError`` as ``check`` does."""
    check(module.partition(".")[0], what)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # supervision warns where it has no OpenCV, and works
        return import_module(module)

"""The models of the project, by names that stand for the paths of their checkpoints."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path
from typing import Final

from .errors import DataError

FAMILY: Final = {"small": "sharpmask_lite0_112.safetensors", "base": "sharpmask_lite2_112.safetensors"}
"""The files of the models in the package. One may be absent: it is then trained, or fetched, by who wants it."""
DEFAULT: Final = "small"


def checkpoint_path(path: str | Path | None, what: str = "checkpoint") -> Path:
    """The path of a checkpoint, given as a path, a name of the family, or None for the family's default.

    A file that has such a name is meant by ``./small``, as text. Raises ``DataError``, which calls the argument
    ``what``, for a model of the family that did not come with the package, and for a `Path` that may mean it or what
    the working folder has of that name.
    """
    name = DEFAULT if path is None else str(path)
    if name not in FAMILY:
        return Path(name)
    found = _asset(name)
    if isinstance(path, Path) and os.path.lexists(path):  # a Path does not keep the ./ of ./small
        raise DataError(
            f"{what}: {name} is a model of this package, and the working folder has {name} too; "
            f"give {path.absolute()} for the one, {found} for the other"
        )
    if not found.is_file():
        raise DataError(
            f"{what}: the model {name!r} does not come with this version; there is {', '.join(shipped())}. "
            f"To train it: sharpmask train joint --config configs/{name}.yaml (docs/training.md), then give its path"
        )
    return found


def shipped() -> list[str]:
    """The names of the models that came with the package."""
    return [name for name in FAMILY if _asset(name).is_file()]


def _asset(name: str) -> Path:
    return Path(str(files("sharpmask"))) / "assets" / FAMILY[name]

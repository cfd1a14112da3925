"""The checkpoints that come with the package, by names that stand for their paths."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Final

FAMILY: Final = {"small": "sharpmask_lite0_112.safetensors"}
DEFAULT: Final = "small"


def checkpoint_path(path: str | Path | None) -> Path:
    """The path of a checkpoint, given as a path, a name of the family, or None for the family's default.

    A file that has such a name is meant by ``./small``, as text.
    """
    name = DEFAULT if path is None else str(path)
    return Path(str(files("sharpmask") / "assets" / FAMILY[name])) if name in FAMILY else Path(name)

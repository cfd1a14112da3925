"""Symbolic links that lead out of a data set."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

Links = Literal["follow", "refuse"]
"""What to do with symbolic links that lead out of a data set."""


class Outside:
    """Finds the files of a folder that are outside, which only symbolic links can reach."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: list[Path] = []
        """All that were found, by the names that they have in the folder."""
        self._real_root = _target(root)
        self._inside: dict[Path, bool] = {}

    def holds(self, path: Path) -> bool:
        """Whether the file `path` of the folder is outside."""
        folder = path.parent
        if folder not in self._inside:
            self._inside[folder] = self._is_inside(folder)
        outside = not self._inside[folder] or (os.path.islink(path) and not self._is_inside(path))
        if outside:
            self.files.append(path)
        return outside

    def note(self) -> list[str]:
        """A line about the files found, if there are any."""
        if not self.files:
            return []
        return [
            f"{self.root}: files outside the folder, reached by symbolic links (links='refuse' or --links refuse "
            f"refuses them): {len(self.files)}; first: {self.files[0]} -> {_target(self.files[0])}"
        ]

    def _is_inside(self, path: Path) -> bool:
        return _target(path).is_relative_to(self._real_root)


def _target(path: Path) -> Path:
    """The file that all links lead to. Unlike `Path.resolve`, never an error, not even for links in a circle."""
    return Path(os.path.realpath(path))

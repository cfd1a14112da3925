"""Several data sets to train on as one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import counted
from .coco import CocoFolder, Photo


class Mixture:
    """Folders, and the weight of each: how often its photos are drawn, relative to the others.

    All must refer to pixels by the same `exif`. Raises ValueError for others, and for weights that do not fit.
    """

    def __init__(self, folders: Sequence[CocoFolder], weights: Sequence[float] | None = None) -> None:
        self.folders = tuple(folders)
        self.weights = (1.0,) * len(self.folders) if weights is None else tuple(weights)
        positive = all(0 < weight < math.inf for weight in self.weights)
        if not self.folders or len(self.folders) != len(self.weights) or not positive:
            count = counted(len(self.folders), "folder")
            raise ValueError(f"weights must be a finite one above 0 for each of {count}, got {weights}")
        if len({folder.cache.exif for folder in self.folders}) > 1:
            raise ValueError("folders must have the same exif")
        # Of a single folder it is the folder's own list.
        self.skipped: list[str] = self.folders[0].skipped
        if len(self.folders) > 1:
            self.skipped = [line for folder in self.folders for line in folder.skipped]
        self._known = set(self.skipped)

    @classmethod
    def of(cls, data: CocoFolder | Mixture) -> Mixture:
        """A folder as a mixture of it alone; a mixture as it is."""
        return data if isinstance(data, Mixture) else cls([data])

    @property
    def backgrounds(self) -> tuple[bool, ...]:
        """Of each folder whether it is background alone, which gives negatives beside others with objects."""
        found = tuple(folder.is_background for folder in self.folders)
        return (False,) * len(found) if all(found) else found

    @property
    def skip_bad(self) -> bool:
        """Whether damaged photos are left out."""
        return any(folder.skip_bad for folder in self.folders)

    def leave_out(self, line: str) -> None:
        """Note what is left out, if that is not known yet."""
        if line not in self._known:
            self._known.add(line)
            self.skipped.append(line)

    @property
    def name(self) -> str:
        """The annotation files, for errors."""
        return ", ".join(str(folder.annotation_file) for folder in self.folders)

    def load(self, photo: Photo) -> NDArray[np.uint8]:
        """The pixels of a photo of any of the folders, as :meth:`CocoFolder.load`, from one cache."""
        return self.folders[0].load(photo)

    def share_cache(self, users: int) -> None:
        """Make the cache of decoded photos hold one of ``users`` parts of what it may hold."""
        cache = self.folders[0].cache
        cache.max_bytes //= max(1, users)

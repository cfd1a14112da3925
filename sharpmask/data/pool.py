"""Photos to train on, each with its chance to be drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .coco import Photo
from .objects import Instance
from .packed import Packed

Floats = npt.NDArray[np.float64]
Chosen = npt.NDArray[np.bool_]
"""Which photos of a pool, bool (N,)."""

_SIZES = (32**2, 96**2)
"""Areas, in square pixels, from which on COCO calls objects medium and large."""


class Pool:
    """Photos with objects, each with its chance to be drawn; without chances, all are drawn alike."""

    def __init__(self, photos: Sequence[Photo], chances: Floats | None = None) -> None:
        self.photos = Packed.joined(Photo, [photos])
        self._chances = chances
        self._bounds = None if chances is None else np.cumsum(chances)
        self._by_size: list[tuple[int, Pool]] | None = None

    @classmethod
    def of(cls, sets: Sequence[tuple[Sequence[Photo], float]], balance: float = 0.0) -> Pool:
        """The photos of several data sets, each with its weight: how often its photos together are drawn.

        Within a data set, a source of n photos is drawn n ** (1 - balance) as often: 0 draws photos alike, 1 sources.
        """
        together = Packed.joined(Photo, [photos for photos, _ in sets])
        if len(sets) < 2 and not balance:
            return cls(together)
        shares = []
        for photos, weight in sets:
            sources = Packed.joined(Photo, [photos]).values("source")
            counts = Counter(sources)
            each = np.array([counts[source] ** -balance for source in sources])
            shares.append(weight * each / each.sum())
        return cls(together, np.concatenate(shares))

    def share(self, chosen: Chosen) -> float:
        """How often a photo is one of those ``chosen``, in [0, 1]."""
        chances = self._all_chances()
        return float(chances[chosen].sum() / chances.sum())

    def only(self, chosen: Chosen) -> Pool:
        """The photos ``chosen``, with chances in the same proportion."""
        chances = None if self._chances is None else self._chances[chosen]
        return Pool(self.photos.take(np.flatnonzero(chosen).tolist()), chances)

    def _all_chances(self) -> Floats:
        return np.ones(len(self.photos)) if self._chances is None else self._chances

    def photo(self, rng: np.random.Generator) -> Photo:
        """One of the photos."""
        if self._bounds is None:
            return self.photos[int(rng.integers(len(self.photos)))]
        place = np.searchsorted(self._bounds, rng.random() * self._bounds[-1], side="right")
        return self.photos[min(int(place), len(self.photos) - 1)]

    def an_object(self, rng: np.random.Generator, *, by_size: bool) -> tuple[Photo, Instance]:
        """A photo and one of its objects, which may be a crowd.

        ``by_size`` draws first among small, medium and large, as far as there are any, and no crowd.
        """
        sizes = self._sizes() if by_size else []
        if not sizes:
            photo = self.photo(rng)
            return photo, photo.instances[int(rng.integers(len(photo.instances)))]
        size, pool = sizes[int(rng.integers(len(sizes)))]
        photo = pool.photo(rng)
        fitting = [instance for instance in photo.instances if _size(instance) == size]
        return photo, fitting[int(rng.integers(len(fitting)))]

    def _sizes(self) -> list[tuple[int, Pool]]:
        """The classes of size that there are, and the photos that have an object of each."""
        if self._by_size is None:
            there = [{_size(instance) for instance in photo.instances} for photo in self.photos]
            chosen = [np.array([size in sizes for sizes in there], bool) for size in range(len(_SIZES) + 1)]
            self._by_size = [(size, self.only(photos)) for size, photos in enumerate(chosen) if photos.any()]
        return self._by_size


def _size(instance: Instance) -> int:
    """0 for a small object, 1 for a medium and 2 for a large one; -1 for a crowd."""
    return -1 if instance.crowd else sum(instance.area >= area for area in _SIZES)

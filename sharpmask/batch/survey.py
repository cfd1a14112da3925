"""The first pass over files of rows: what is in them, which rows count, and what photos are called in other formats."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from fnmatch import translate
from pathlib import PurePath
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..fingerprint import differences
from ..ranges import shown
from .ids import DIGITS, HASHED, number_of
from .reading import RowsFile

MOST_KINDS: Final = 100
"""Most kinds of errors, and most fingerprints, that are counted apart; the rest is counted together."""
OTHERS: Final = "others"
NO_NUMBER: Final = -1
Name = tuple[Any, Any]
"""A row's id and path."""


class Survey:
    """What the rows of some files say, but for their masks: some 40 bytes of memory a row.

    ``pattern``: rows whose path, or id where there is no path, does not match it are left out.
    """

    def __init__(self, files: Sequence[RowsFile], pattern: str = "*") -> None:
        self.files, self.pattern = files, pattern
        self.photos = self.failed = self.proposals = 0
        self.errors: Counter[str] = Counter()
        """How often each kind of error occurred."""
        self.fingerprints: Counter[str] = Counter()
        self.records = {key: record for file in files for key, record in file.records.items()}
        """The settings by fingerprint, as far as the files have them."""
        self._matches = re.compile(translate(pattern)).match
        # For each row: whether it matches, whether it failed, hashes of its id and file name, its number.
        parts = [self._arrays(batch) for file in files for batch in file.names()]
        columns = [np.concatenate([np.zeros(0, array.dtype), *arrays]) for array, arrays in _columns(parts)]
        self._matched, self._failed, self._ids, self._stems, numbers = columns
        self.kept = self._kept()
        """Which rows count, (rows): of those that share an id the first that did not fail, or the first."""
        self.image_ids = self._image_ids(numbers)
        """Each row's id in COCO, (rows)."""

    @property
    def doubled(self) -> int:
        """How many rows do not count because their id stands in another one."""
        return int(self._matched.sum() - self.kept.sum())

    def a_doubled_row(self) -> Name:
        """The id and path of one of them."""
        return self.name(int(np.flatnonzero(self._matched & ~self.kept)[0]))

    def check_pattern(self) -> None:
        """Raise ``DataError`` where there are rows and the pattern matches none; it shows what is matched."""
        if len(self._matched) and not self._matched.any():
            key, path = self.name(0)
            what = "path" if path else "id"
            raise DataError(
                f"photos must match the whole {what} of a row, got {shown(self.pattern)}, which matches none of "
                f"{len(self._matched)}; the first {what} is {shown(path or str(key))}"
            )

    def check_mixed(self) -> None:
        """Raise ``DataError`` where rows were made with different settings; it says what differs."""
        if len(self.fingerprints) > 1:
            raise DataError(
                f"rows must be of one fingerprint, got {len(self.fingerprints)}: {self.told_differences()}; "
                "give those of one run, or --mixed to take all"
            )

    def told_differences(self) -> str:
        """What differs between the settings of the two commonest fingerprints."""
        first, second = (name for name, _ in self.fingerprints.most_common(2))
        then, now = self.records.get(first), self.records.get(second)
        if then is None or now is None:
            return f"{first} and {second}, of which the files do not have the settings"
        return differences(then, now)

    def check_stems(self) -> None:
        """Raise ``DataError`` where two photos would have one file, because that is called like the photo."""
        good = np.flatnonzero(self.kept & ~self._failed)
        _, first, counts = np.unique(self._stems[good], return_index=True, return_counts=True)
        if (counts > 1).any():
            row = good[first[counts > 1][0]]
            same = np.flatnonzero((self._stems == self._stems[row]) & self.kept & ~self._failed)
            one, other = (path or key for key, path in map(self.name, map(int, same[:2])))
            raise DataError(f"{one} and {other} would have one file; take them apart with --photos")

    def name(self, row: int) -> Name:
        """The id and path of a row."""
        for file in self.files:
            for keys, paths, *_ in file.names():
                if row < len(keys):
                    return keys[row], paths[row]
                row -= len(keys)
        raise DataError("rows must be as they were, but files have changed while they were read")

    def _arrays(self, batch: tuple[list[Any], ...]) -> tuple[NDArray[Any], ...]:
        """What is kept of a batch's rows."""
        keys, paths, errors, fingerprints, counts = batch
        matched = np.array([self._matches(path or str(key)) is not None for key, path in zip(keys, paths, strict=True)])
        for index in np.flatnonzero(matched):
            self._count(paths[index], errors[index], fingerprints[index])
        self.proposals += int(np.sum(np.array(counts)[matched]))
        stems = [stem_of(key, path) for key, path in zip(keys, paths, strict=True)]
        numbers = np.array([_number(key, stem) for key, stem in zip(keys, stems, strict=True)], dtype=np.int64)
        failed = np.array([error is not None for error in errors])
        return matched, failed, _hashes(map(str, keys)), _hashes(stem.lower() for stem in stems), numbers

    def _count(self, path: Any, error: Any, fingerprint: Any) -> None:
        self.photos += 1
        self.failed += error is not None
        for counter, value in (
            (self.fingerprints, str(fingerprint)),
            (self.errors, None if error is None else kind_of(error, path)),
        ):
            if value is not None:
                counter[value if value in counter or len(counter) < MOST_KINDS else OTHERS] += 1

    def _kept(self) -> NDArray[np.bool_]:
        order = np.lexsort((np.arange(len(self._ids)), self._failed, self._ids))
        order = order[self._matched[order]]
        first = np.diff(self._ids[order], prepend=~self._ids[order[:1]]) != 0
        kept = np.zeros(len(self._ids), dtype=bool)
        kept[order[first]] = True
        return kept

    def _image_ids(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """A photo's number, where it has one and no other has it, as in ``propose``; else a hash of its id."""
        _, inverse, counts = np.unique(numbers[self.kept], return_inverse=True, return_counts=True)
        alone = np.zeros(len(numbers), dtype=bool)
        alone[self.kept] = counts[inverse] == 1
        hashes = (self._ids >> np.uint64(12)).astype(np.int64) + HASHED
        ids = np.where(alone & (numbers != NO_NUMBER), numbers, hashes)
        found, counts = np.unique(ids[self.kept], return_counts=True)
        if (counts > 1).any():
            raise DataError(f"ids of photos must have different hashes, got {found[counts > 1][0]} twice; change an id")
        return ids


def stem_of(key: Any, path: Any) -> str:
    """What files of a row's photo are called, without a suffix."""
    return PurePath(path or str(key)).stem


def _number(key: Any, stem: str) -> int:
    """The number that a photo has for a key of the user's, or for a name; ``NO_NUMBER`` without one."""
    for text in (str(key), stem):
        number = None if len(text) == DIGITS else number_of(text)  # A hash may look like a number.
        if number is not None:
            return number
    return NO_NUMBER


def kind_of(error: str, path: str | None) -> str:
    """An error without what is of its photo alone: its name, and numbers."""
    told = error.removeprefix(f"{path}: ").removeprefix("image: ")
    return re.sub(r"\d+", "N", told)[:200]


def _hashes(texts: Iterator[str] | map[str]) -> NDArray[np.uint64]:
    """The beginnings of SHA-256 hashes."""
    digests = (hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8] for text in texts)
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)


def _columns(parts: list[tuple[NDArray[Any], ...]]) -> Iterator[tuple[NDArray[Any], tuple[NDArray[Any], ...]]]:
    """Each kind of array, an empty one where there is none, with all of its kind."""
    kinds = tuple(np.zeros(0, kind) for kind in (bool, bool, np.uint64, np.uint64, np.int64))
    return zip(kinds, zip(*parts, strict=True) if parts else [()] * len(kinds), strict=True)

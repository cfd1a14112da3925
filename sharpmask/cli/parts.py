"""The results of single photos. A stopped run goes on from them, so each has a record of what made it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ..errors import DataError, counted
from ..files import write_text
from ..fingerprint import differences, hash_of
from .output import ERR, say

Entries = list[dict[str, Any]]
"""Entries of a COCO results file."""


_OLD_NAME = re.compile(r".+-\d+\.json", re.DOTALL)
LONGEST_HEAD = 1 << 16
"""Bytes of a file of results within which its proposals begin."""
_SUM = b'{"sha256": "%s", '
"""How a file of results begins: with the hash of what follows."""


class Searched(Protocol):
    """What the results of a photo need to know of it."""

    @property
    def path(self) -> Path: ...
    @property
    def name(self) -> str: ...
    @property
    def part(self) -> str: ...


class Content(NamedTuple):
    """What a photo's file held when it was searched."""

    bytes: int
    mtime_ns: int
    sha256: str


def content_of(path: Path) -> Content:
    """Raises ``DataError`` for what is no regular file, or cannot be read."""
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise DataError(f"{path}: must be a regular file")
        return Content(found.st_size, found.st_mtime_ns, hash_of(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


class Parts:
    """The files of a folder that hold a photo's results each, made with the same settings.

    Such a file is a JSON object of four: ``sha256`` of all that follows, ``settings``, ``photo`` and ``proposals``, the
    entries of COCO results.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        # As JSON gives them back: a list for a tuple.
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))

    def write(self, photo: Searched, content: Content, entries: Entries) -> None:
        """Write a photo's results. Raises an ``OSError`` that names the file."""
        record = {"settings": self.settings, "photo": {"name": photo.name, **content._asdict()}, "proposals": entries}
        text = json.dumps(record).removeprefix("{")
        write_text(self.folder / photo.part, [_beginning(text.encode()).decode(), text])

    def finished(self, photos: Sequence[Searched]) -> list[bool]:
        """For each photo whether its results are there, made with these settings of the file as it is now.

        Raises ``DataError`` for results of other settings or of another photo. Damaged or edited ones count as none,
        which is said.
        """
        self._refuse_old_names()
        there = []
        foreign: dict[Path, str] = {}
        for photo in photos:
            record = self._read(photo)
            there.append(record is not None)
            if record is not None and (differ := self._differ(photo, record)):
                foreign[self.folder / photo.part] = differ
        if foreign:
            path, differ = next(iter(foreign.items()))
            more = counted(len(foreign) - 1, "more file is", "more files are")
            others = f" ({more} not of this run)" * (len(foreign) > 1)
            raise DataError(
                f"{path}: --resume cannot go on from these results: {differ}{others}; give the same, or another --out, "
                "or delete such files; without --resume all photos are searched"
            )
        return there

    def entries(self, photo: Searched) -> Entries:
        """A photo's results; empty if there are none."""
        record = self._read(photo)
        return record["proposals"] if record else []

    def merge(self, photos: Sequence[Searched], path: Path | None) -> list[bool]:
        """Join the photos' results in one file, if given, an entry a line. Says for each photo whether it had some.

        Only one photo's results are in memory at a time.
        """
        there = []

        def lines() -> Iterator[str]:
            separator = "[\n"
            for photo in photos:
                record = self._read(photo)
                there.append(record is not None)
                for entry in record["proposals"] if record else ():
                    yield separator + json.dumps(entry)
                    separator = ",\n"
            yield "\n]\n" if separator == ",\n" else "[]\n"

        if path is None:
            deque(lines(), maxlen=0)
        else:
            write_text(path, lines())
        return there

    def _differ(self, photo: Searched, record: dict[str, Any]) -> str:
        """How the settings and the photo of some results differ from these; an empty text if they do not."""
        return differences(record["settings"], self.settings) or _other_photo(record["photo"], photo)

    def _read(self, photo: Searched) -> dict[str, Any] | None:
        """A photo's results with their record, or None if there are none or damaged ones.

        Raises ``DataError`` for results of an older version.
        """
        path = self.folder / photo.part
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        if content.startswith(b"["):
            raise DataError(_of_an_older_version(path))
        record = _whole(content)
        if record is None:
            say(f"{path}: damaged or edited, so its photo is searched again", ERR)
        return record

    def _refuse_old_names(self) -> None:
        """Older versions numbered photos by their place, so their results would be passed over."""
        for path in sorted(self.folder.glob("*-*.json")):
            if _OLD_NAME.fullmatch(path.name) and path.is_file():
                with open(path, "rb") as file:
                    if file.read(1) == b"[":
                        raise DataError(_of_an_older_version(path))


def has_results(folder: Path, photo: Searched) -> bool:
    """Whether a file of results under the photo's names says that it is of this photo. Its results are not checked."""
    try:
        with open(folder / photo.part, "rb") as file:
            then = json.loads(file.read(LONGEST_HEAD).partition(b', "proposals": ')[0] + b"}")["photo"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False
    return isinstance(then, dict) and not _other_photo(then, photo)


def _other_photo(then: dict[str, Any], photo: Searched) -> str:
    """How the photo differs from the one that was searched; an empty text if it does not."""
    if then.get("name") != photo.name:
        return differences({"photo": then.get("name")}, {"photo": photo.name})
    try:
        now = os.stat(photo.path)
    except OSError:
        return ""  # The results are all that is left of the photo.
    if (then.get("bytes"), then.get("mtime_ns")) == (now.st_size, now.st_mtime_ns):
        return ""
    if then.get("bytes") == now.st_size and then.get("sha256") == hash_of(photo.path):
        return ""  # It was copied or touched.
    return f"{photo.path} has changed since (it had {then.get('bytes')} bytes, and has {now.st_size})"


def _beginning(rest: bytes) -> bytes:
    """How a file of results begins whose ``rest`` is this."""
    return _SUM % hashlib.sha256(rest).hexdigest().encode()


def _whole(content: bytes) -> dict[str, Any] | None:
    """The record in a file of results, or None if the file is not as it was written."""
    rest = content[len(_beginning(b"")) :]
    if not content.startswith(_beginning(rest)):
        return None
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return record if _is_record(record) else None


def _of_an_older_version(path: Path) -> str:
    return (
        f"{path}: made by an older version, with no record of its settings, so --resume cannot go on from it; "
        "give another --out, or leave --resume out to search all photos"
    )


def _is_record(record: Any) -> bool:
    return (
        isinstance(record, dict)
        and isinstance(record.get("settings"), dict)
        and isinstance(record.get("photo"), dict)
        and isinstance(record.get("proposals"), list)
        and all(isinstance(entry, dict) for entry in record["proposals"])
    )

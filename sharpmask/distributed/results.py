"""The folder of a run's results: what made them, which photos are done, and what they say in the end."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..batch import PARQUET
from ..errors import DataError
from ..fingerprint import differences
from ..packages import needed
from .manifest import Manifest, Part
from .places import Folder
from .sources import Photo

INNER = "_run"
"""The folder in it for what is no row. Programs that read all Parquet files of a folder pass such a name over."""
RUN = "run.json"
MOST_KINDS = 100
"""Most kinds of errors that are told apart."""
MOST_SHOWN = 20
"""Most photos with errors that are kept to be shown."""


class Search(Protocol):
    """What turns a batch of photos into a table of rows: see :class:`sharpmask.batch.Propose`."""

    @property
    def record(self) -> dict[str, Any]: ...
    @property
    def fingerprint(self) -> str: ...
    def schema(self) -> Any: ...
    def __call__(self, batch: dict[str, Any]) -> Any: ...


@dataclass
class Summary:
    """What a folder of results has."""

    rows: int = 0
    """Photos that have a row."""
    left: dict[str, int] = field(default_factory=dict)
    """The parts to write, because they are not there, or damaged, or tried again, and how many photos each lacks."""
    failed: int = 0
    """Rows with an error."""
    errors: Counter[str] = field(default_factory=Counter)
    """How often each kind of error occurs: the text without the photo's name."""
    shown: list[tuple[str, str]] = field(default_factory=list)
    """Paths and errors of the first."""

    def add(self, path: str, error: str) -> None:
        self.failed += 1
        kind = error.replace(path, "").lstrip(": ")[:80]
        self.errors[kind if kind in self.errors or len(self.errors) < MOST_KINDS else "others"] += 1
        if len(self.shown) < MOST_SHOWN:
            self.shown.append((path, error))


class Results:
    """A folder of results, opened to be written by ``search``."""

    def __init__(self, folder: Folder, search: Search) -> None:
        self.folder, self.search = folder, search
        self._run = folder.inner(INNER)
        self.manifest = Manifest(self._run)

    def open(self, *, resume: bool, restart: bool) -> None:
        """Begin a run, or with ``resume`` go on with one, or with ``restart`` remove the one that is there.

        Raises ``DataError`` where results are there that are not of these settings, or are not to go on from.
        """
        if restart:
            self._remove()
        elif RUN in self._run.names():
            self._refuse_others(resume)
            return
        elif any(map(_is_part, self.folder.names())):
            raise DataError(
                f"out: {self.folder} has results without {INNER}/{RUN}, which tells their settings; give another"
            )
        record = {"fingerprint": self.search.fingerprint, "settings": self.search.record}
        self._run.write(RUN, json.dumps(record).encode())

    def write(self, part: Part, rows: dict[str, Any]) -> None:
        """Write a part's rows, given by the ids of its photos as tables of one row."""
        arrow, parquet = (needed(name, "results", "ray") for name in ("pyarrow", "pyarrow.parquet"))
        table = arrow.concat_tables([rows[photo.id] for photo in part.photos])
        sink = io.BytesIO()
        parquet.write_table(table, sink, **PARQUET)
        self.folder.write(part.name, sink.getvalue())

    def summary(self, retry: bool = False) -> Summary:
        """Count the rows against the manifest; those of one part are in memory at a time.

        ``retry``: rows with an error count as not there.
        """
        there = set(self.folder.names())
        summary = Summary()
        for part in self.manifest.parts():
            rows = self._rows(part) if part.name in there else None
            if rows is None:
                summary.left[part.name] = len(part.photos)
                continue
            bad = sum(error is not None for error in rows) if retry else 0
            summary.rows += len(rows) - bad
            if bad:
                summary.left[part.name] = bad
                continue
            for photo, error in zip(part.photos, rows, strict=True):
                if error is not None:
                    summary.add(photo.path, error)
        return summary

    def good(self, part: Part) -> dict[str, Any]:
        """The rows of a part that have no error, by the ids of their photos, as tables of one row."""
        errors = self._rows(part)
        if errors is None:
            return {}
        with self.folder.open(part.name) as file:
            table = needed("pyarrow.parquet", "results", "ray").read_table(file).cast(self.search.schema())
        pairs = enumerate(zip(part.photos, errors, strict=True))
        return {photo.id: table.slice(place, 1) for place, (photo, error) in pairs if error is None}

    def _rows(self, part: Part) -> list[str | None] | None:
        """The errors of a part's rows, in the order of its photos; None where they are not these photos' rows."""
        parquet = needed("pyarrow.parquet", "results", "ray")
        try:
            with self.folder.open(part.name) as file:
                table = parquet.read_table(file, columns=["id", "error", "fingerprint"])
        except (ValueError, KeyError, FileNotFoundError):  # pyarrow.ArrowInvalid is a ValueError
            return None
        same = table["id"].to_pylist() == [photo.id for photo in part.photos]
        made = table["fingerprint"].unique().to_pylist() == [self.search.fingerprint]
        return table["error"].to_pylist() if same and made else None

    def _remove(self) -> None:
        """Remove the run. What says that there is one goes last, so that a killed restart can be repeated."""
        for name in filter(_is_part, self.folder.names()):
            self.folder.remove(name)
        for name in self.manifest.names():
            self._run.remove(name)
        if RUN in self._run.names():
            self._run.remove(RUN)

    def _refuse_others(self, resume: bool) -> None:
        try:
            with self._run.open(RUN) as file:
                then = json.load(file)["settings"]
            differ = differences(then, self.search.record)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise DataError(
                f"{self.folder}/{INNER}/{RUN}: damaged; give another --out, or --restart to begin again"
            ) from None
        if differ:
            raise DataError(
                f"{self.folder}: its results are of other settings: {differ}; "
                "give the same, or another --out, or --restart to begin again"
            )
        if not resume:
            raise DataError(
                f"{self.folder}: has results of these settings; --resume goes on with them, --restart begins again"
            )


def failed(search: Search, photo: Photo, error: str) -> Any:
    """The row of a photo that cannot be searched, as a table."""
    row = {"id": photo.id, "path": _text(photo.path), "error": _text(error), "fingerprint": search.fingerprint}
    return needed("pyarrow", "results", "ray").Table.from_pylist([row], search.schema())


def _text(value: str) -> str:
    """A line that Arrow takes."""
    return " ".join(value.encode("utf-8", "backslashreplace").decode().split())


def _is_part(name: str) -> bool:
    return name.startswith("part-") and name.endswith(".parquet")

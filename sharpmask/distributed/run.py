"""A run: from photos, or what a stopped run has left of them, to files of rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DataError, counted
from ..packages import check
from ..places import place_of
from .manifest import Part
from .places import Folder
from .results import INNER, Results, Search, Summary, failed
from .sources import Photo, photos_of

ROWS_PER_FILE = 200
PHOTO_SECONDS = 600.0
MEMORY = 1.2
"""Gigabytes reserved for a worker."""
PHOTOS_PER_CALL = {"cpu": 1, "cuda": 8}
ATTEMPTS = 3
"""How often photos are searched whose rows vanish while the run lasts."""


def propose(
    photos: str | Path | Sequence[str | Path],
    out: str | Path,
    settings: Search,
    *,
    workers: int | None = None,
    address: str = "local",
    rows_per_file: int = ROWS_PER_FILE,
    resume: bool = False,
    restart: bool = False,
    retry_errors: bool = False,
    recursive: bool = False,
    memory: float = MEMORY,
    gpu_share: float = 1.0,
    photo_seconds: float = PHOTO_SECONDS,
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Summary:
    """Search photos on a Ray cluster and write a row for each, in Parquet files of ``rows_per_file``.

    ``photos``: photos, folders, text files of paths, Parquet files with a column ``path`` (and ``id``), tar archives
    (WebDataset): paths that all machines see, or URLs that fsspec knows. ``out``: a folder or a URL, which only this
    process writes to. ``settings``: a :class:`sharpmask.batch.Propose`; without its ``root``, ids are those of paths
    below the given folders.

    ``workers``: of one core each, by default as many as the cluster has room for, with ``memory`` gigabytes reserved,
    and ``gpu_share`` of a GPU where the device is "cuda". ``address``: "local" for this machine, "auto" for the cluster
    that it is part of, or an address. ``resume`` goes on with a stopped run of the same settings, with ``retry_errors``
    also with photos whose rows have an error; ``restart`` removes its results first. A worker that has no result for a
    photo after ``photo_seconds`` is replaced.

    ``say`` is given lines for the user, ``progress`` the numbers of photos that are done and of all.

    A photo that cannot be searched, or on which workers die, has a row with ``error``. Returns what the folder has
    then. Raises ``DataError`` for photos, settings or results that cannot be used, and an ``OSError`` where a file
    cannot be written; what is finished by then is kept.
    """
    for package in ("ray", "pyarrow"):
        check(package, "cluster ray", "ray")
    given = [photos] if isinstance(photos, str | Path) else list(photos)
    device = "cpu" if getattr(settings, "device", "cpu") == "cpu" else "cuda"
    crew = Crew(workers, address, device, memory, gpu_share, photo_seconds)
    results = Results(Folder(place_of(out)), settings)
    with results.folder.alone(INNER):
        results.open(resume=resume, restart=restart)
        found = photos_of(given, recursive=recursive, root=getattr(settings, "root", None))
        results.manifest.add(found, rows_per_file)
        for attempt in range(ATTEMPTS):
            retry = retry_errors and not attempt
            summary = results.summary(retry)
            if not summary.rows and not summary.left:
                raise DataError("photos must be some, got none")
            if not summary.left:
                break
            if summary.rows:
                say(f"{counted(summary.rows, 'photo has a row', 'photos have rows')} in {results.folder}")
            _search(results, Parts(results, summary, retry), crew, say, progress)
        else:
            summary = results.summary()
    return summary


class Crew(NamedTuple):
    """The workers that were asked for."""

    workers: int | None
    address: str
    device: str
    memory: float
    gpu_share: float
    photo_seconds: float


def _search(
    results: Results,
    parts: Parts,
    crew: Crew,
    say: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> None:
    """Search the photos of the parts that are left, and write each part when it is whole."""
    from .cluster import connected, count_workers
    from .pool import Need, Pool

    gpus = crew.gpu_share if crew.device != "cpu" else 0
    need = Need(1, gpus, int(crew.memory * 1e9), PHOTOS_PER_CALL[crew.device])
    done, total = parts.done, parts.total
    with connected(crew.address, crew.workers or _cores()) as ray:
        workers = count_workers(ray, need, crew.workers, say)
        pool = Pool(ray, results.search, need, crew.photo_seconds, say)
        for found in pool.outcomes(parts.photos(), min(workers, total - done)):
            rows = found.rows or [failed(results.search, photo, found.error) for photo in found.photos]
            for photo, row in zip(found.photos, rows, strict=True):
                parts.add(photo, row)
            done += len(found.photos)
            progress(done, total)


class Parts:
    """The parts whose photos are being searched. Their rows are in memory until all of a part's are there."""

    def __init__(self, results: Results, summary: Summary, retry: bool) -> None:
        """``retry``: rows without an error that these parts have are kept."""
        self._results, self._names, self._retry = results, set(summary.left), retry
        self.done = summary.rows
        self.total = summary.rows + sum(summary.left.values())
        self._open: dict[str, tuple[Part, dict[str, Any]]] = {}
        """By the ids of their photos."""

    def photos(self) -> Iterator[Photo]:
        """The photos of the parts to write, read as they are asked for."""
        for part in self._results.manifest.parts():
            if part.name in self._names:
                rows = self._results.good(part) if self._retry else {}
                for photo in [photo for photo in part.photos if photo.id not in rows]:
                    self._open[photo.id] = part, rows
                    yield photo

    def add(self, photo: Photo, row: Any) -> None:
        """Take a photo's row, and write its part if that was the last."""
        part, rows = self._open.pop(photo.id)
        rows[photo.id] = row
        if len(rows) == len(part.photos):
            self._results.write(part, rows)


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

"""Workers on a Ray cluster, and the photos that they are given.

A worker is an actor of one core, or of a part of a GPU. It gets photos one by one, or on a GPU a few at a time, with
one call ahead, so no more than these are lost with it. A photo that was searched when its worker died is tried again
alone; after ``TRIES`` deaths it is given up. A worker that takes too long for a photo counts as dead.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, NamedTuple

from ..errors import DataError, one_line
from ..places import content_of
from .results import Search, failed
from .sources import Photo

TRIES = 3
"""How many workers may die on a photo."""
AHEAD = 2
"""Calls that a worker has, with the one that it works on."""
MOST_DEATHS = 50
"""Deaths of workers, one after another without any photo searched, after which the run stops."""
PATIENCE = 60.0
"""Seconds without any word of a worker after which it is said that workers are waited for."""

Call = list[Photo]


class Need(NamedTuple):
    """What is reserved for a worker."""

    cpus: int = 1
    gpus: float = 0
    memory: int = 1_200_000_000
    """In bytes."""
    photos: int = 1
    """How many it is given at a time."""

    def __str__(self) -> str:
        gpu = f", {self.gpus:g} of a GPU" if self.gpus else ""
        return f"{self.cpus} core{gpu} and {self.memory / 1e9:g} GB of memory"


class Searcher:
    """What runs in a worker."""

    def __init__(self, search: Search, threads: int) -> None:
        self._search = search
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(threads)

    def ready(self) -> None:
        """Called first: photos are given to workers that run."""

    def search(self, photos: Call) -> list[Any]:
        """The row of each photo as a table. One that cannot be read is told by its row."""
        rows: dict[str, Any] = {}
        contents: dict[Photo, bytes | None] = {}
        for photo in photos:
            try:
                contents[photo] = None if photo.archive is None else content_of(photo.archive, photo.offset, photo.size)
            except Exception as error:  # of the store, of its connection: these have no class in common
                rows[photo.id] = failed(self._search, photo, f"{photo.path}: cannot be read: {error}")
        if contents:
            columns = {"id": [photo.id for photo in contents], "path": [photo.path for photo in contents]}
            table = self._search(columns | {"bytes": list(contents.values())})
            rows |= {photo.id: table.slice(place, 1) for place, photo in enumerate(contents)}
        return [rows[photo.id] for photo in photos]


class Outcome(NamedTuple):
    """Photos and their rows, or the reason why there are none."""

    photos: Call
    rows: Sequence[Any]
    error: str = ""


@dataclass(eq=False)
class Worker:
    actor: Any
    calls: deque[Call] = field(default_factory=deque)
    """What it was given and has not answered, in order."""
    since: float = 0.0
    """When the first of these became the first."""
    alive: bool = True


class Event(NamedTuple):
    """A worker's answer to a call, or that it has started."""

    worker: Worker
    call: Call | None
    rows: Sequence[Any]
    error: BaseException | None


class Pool:
    """Workers that search photos. Those that die are replaced."""

    def __init__(self, ray: Any, search: Search, need: Need, seconds: float, say: Callable[[str], None]) -> None:
        """``seconds``: the most that a worker may take for a photo; its first one includes the loading of its model."""
        self._ray, self._need, self._seconds, self._say = ray, need, seconds, say
        self._beat = min(PATIENCE, seconds / 10)
        self._search = ray.put(search)
        self._kind = ray.remote(Searcher).options(
            num_cpus=need.cpus, num_gpus=need.gpus, memory=need.memory, max_restarts=0, max_task_retries=0
        )
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._workers: dict[Worker, None] = {}
        self._free: dict[Worker, None] = {}
        """Those that have room for another call. (Dicts keep an order.)"""
        self._waiting: deque[Call] = deque()
        self._tries: Counter[str] = Counter()
        self._deaths = 0
        self._heard = self._looked = monotonic()
        """When there was an event, and when workers that take too long were looked for."""

    def outcomes(self, photos: Iterator[Photo], workers: int) -> Iterator[Outcome]:
        """What becomes of the photos, in any order. Raises ``DataError`` where the workers cannot work."""
        calls = iter(lambda: list(itertools.islice(photos, self._need.photos)), [])
        try:
            for _ in range(workers):
                self._hire()
            while self._give(calls) or any(worker.calls for worker in self._workers):
                try:
                    event = self._events.get(timeout=self._beat)
                except Empty:
                    self._tell_waiting()
                else:
                    self._heard = monotonic()
                    if event.worker.alive:  # A dead one's first call has told of its death.
                        yield from self._settle(event)
                yield from self._end_late()
        finally:
            # Not left to their last references, which calls without an answer keep.
            for worker in self._workers:
                self._ray.kill(worker.actor)

    def _end_late(self) -> Iterator[Outcome]:
        """Replace workers that take too long. What they have answered is heard first."""
        now = monotonic()
        if now < self._looked + self._beat or not self._events.empty():
            return
        self._looked = now
        for worker in list(self._workers):
            if worker.calls and now > worker.since + self._seconds * len(worker.calls[0]):
                yield from self._bury(worker, TimeoutError(f"no result after {self._seconds:g} seconds"))

    def _settle(self, event: Event) -> Iterator[Outcome]:
        if event.error is not None:
            yield from self._bury(event.worker, event.error)
            return
        self._free[event.worker] = None
        if event.call is not None:
            self._deaths = 0
            event.worker.calls.remove(event.call)
            event.worker.since = monotonic()
            yield Outcome(event.call, event.rows)

    def _give(self, calls: Iterator[Call]) -> bool:
        """Give the next photos to workers that have room. Returns whether some are left."""
        while True:
            if not self._waiting:
                self._waiting.extend(itertools.islice(calls, 1))
            if not self._waiting or not self._free:
                return bool(self._waiting)
            worker = next(iter(self._free))
            del self._free[worker]
            call = self._waiting.popleft()
            if not worker.calls:
                worker.since = monotonic()
            worker.calls.append(call)
            if len(worker.calls) < AHEAD:
                self._free[worker] = None  # behind the others
            self._expect(worker, call, worker.actor.search.remote(call))

    def _hire(self) -> None:
        worker = Worker(self._kind.remote(self._search, self._need.cpus))
        self._workers[worker] = None
        self._expect(worker, None, worker.actor.ready.remote())

    def _expect(self, worker: Worker, call: Call | None, reference: Any) -> None:
        def tell(future: Any) -> None:
            error = future.exception()
            rows = () if error is not None or call is None else future.result()
            self._events.put(Event(worker, call, rows, error))

        reference.future().add_done_callback(tell)

    def _bury(self, worker: Worker, error: BaseException) -> Iterator[Outcome]:
        """Replace a worker that died, that takes too long, or whose search failed, from which a GPU may not recover."""
        cause = getattr(error, "cause", None)
        if isinstance(cause, DataError):  # of settings; photos have theirs in their rows
            raise DataError(str(cause))
        self._deaths += 1
        if self._deaths == MOST_DEATHS:
            raise DataError(f"workers died {MOST_DEATHS} times without any photo searched; the last: {reason(error)}")
        worker.alive = False
        self._free.pop(worker, None)
        del self._workers[worker]
        self._ray.kill(worker.actor)
        self._hire()
        if worker.calls:
            guilty = worker.calls.popleft()
            self._waiting.extend(worker.calls)
            yield from self._retry(guilty, error)

    def _retry(self, guilty: Call, error: BaseException) -> Iterator[Outcome]:
        if len(guilty) > 1:
            self._waiting.extend([photo] for photo in guilty)
            return
        (photo,) = guilty
        self._tries[photo.id] += 1
        if self._tries[photo.id] < TRIES:
            self._waiting.append(guilty)
            return
        del self._tries[photo.id]
        yield Outcome(guilty, (), f"{photo.path}: given up after {TRIES} workers: {reason(error)}")

    def _tell_waiting(self) -> None:
        if monotonic() > self._heard + PATIENCE and not any(worker.calls for worker in self._workers):
            self._heard = monotonic()
            has = ", ".join(f"{name} {amount:g}" for name, amount in self._ray.available_resources().items())
            self._say(f"waiting for workers: each takes {self._need}; free in the cluster: {has}")


def reason(error: BaseException) -> str:
    """Why a worker's call has no result, in a line."""
    if type(error) is TimeoutError:
        return str(error)
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception):
        return one_line(f"{type(cause).__name__}: {cause}")
    if getattr(error, "actor_init_failed", False):  # such as: No module named 'sharpmask'
        return one_line(str(error).strip().splitlines()[-1])
    if type(error).__name__ == "OutOfMemoryError":
        return "its machine ran out of memory"
    return "its process died"

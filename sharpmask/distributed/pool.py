"""Workers on a Ray cluster, and the photos that they are given.

A worker is an actor of one core, or of a part of a GPU. It gets photos one by one, or on a GPU a few at a time, with
one call ahead, so no more than these are lost with it. A photo that was searched when its worker died is tried again
alone; after ``TRIES`` deaths it is given up. A worker that takes too long for a photo counts as dead. One that is lost
with its node does not count, until ``MOST_TRIES`` workers are lost on a photo in any way.
"""

from __future__ import annotations

import itertools
import sys
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, NamedTuple

from ..errors import DataError, counted, one_line
from ..places import content_of
from .results import Search, failed
from .sources import Photo

TRIES = 3
"""How many workers may die on a photo, those aside that are lost with their nodes."""
MOST_TRIES = 10
"""How many workers may be lost on a photo in any way: it may be what ends whole nodes."""
AHEAD = 2
"""Calls that a worker has, with the one that it works on."""
MOST_DEATHS = 50
"""Deaths of workers, one after another without any photo searched, after which the run stops."""
MOST_LOST = 1000
"""The same, with those that are lost with their nodes."""
PATIENCE = 60.0
"""Seconds without any word of a worker after which it is said that workers are waited for."""

REASONS = {
    "OutOfMemoryError": "its machine ran out of memory",
    "ActorUnavailableError": "its machine cannot be reached",
}
"""What Ray's errors tell of a worker."""
UNREACHABLE = "unreachable"
"""In the place of a node to which the connection was lost."""

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

    def ready(self) -> str:
        """The id of its node. Called first: photos are given to workers that run."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

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
    node: str | None = None
    """Where it runs, once it has started."""
    since: float = 0.0
    """When the first of these became the first."""
    alive: bool = True


class Event(NamedTuple):
    """A worker's answer to a call, or without a call that it has started."""

    worker: Worker
    call: Call | None
    answer: Any
    """The rows of the photos, or the node that it has started on."""
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
        self._tries: defaultdict[str, list[str | None]] = defaultdict(list)
        """The nodes of the workers that were lost on a photo, by its id."""
        self._deaths: list[str | None] = []
        """Those of the workers that were lost since a photo was searched; ``UNREACHABLE`` where that is known."""
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
        if event.call is None:
            event.worker.node = event.answer
        else:
            self._deaths.clear()
            event.worker.calls.remove(event.call)
            event.worker.since = monotonic()
            yield Outcome(event.call, event.answer)

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
            self._events.put(Event(worker, call, None if error is not None else future.result(), error))

        reference.future().add_done_callback(tell)

    def _bury(self, worker: Worker, error: BaseException) -> Iterator[Outcome]:
        """Replace a worker that died, that takes too long, or whose search failed, from which a GPU may not recover."""
        cause = getattr(error, "cause", None)
        if isinstance(cause, DataError):  # of settings; photos have theirs in their rows
            raise DataError(str(cause))
        # The cluster takes some time to know that a node is gone. A process that died is known at once.
        unreachable = type(error).__name__ == "ActorUnavailableError"
        self._deaths.append(UNREACHABLE if unreachable else worker.node)
        if self._too_many(self._deaths, MOST_DEATHS, MOST_LOST):
            deaths = counted(len(self._deaths), "time")
            raise DataError(f"workers died {deaths} without any photo searched; the last: {reason(error)}")
        worker.alive = False
        self._free.pop(worker, None)
        del self._workers[worker]
        self._ray.kill(worker.actor)
        self._hire()
        if worker.calls:
            guilty = worker.calls.popleft()
            self._waiting.extend(worker.calls)
            yield from self._retry(guilty, worker.node, error)

    def _retry(self, guilty: Call, node: str | None, error: BaseException) -> Iterator[Outcome]:
        if len(guilty) > 1:
            self._waiting.extend([photo] for photo in guilty)
            return
        (photo,) = guilty
        tries = self._tries[photo.id]
        tries.append(node)
        if not self._too_many(tries, TRIES, MOST_TRIES):
            self._waiting.append(guilty)
            return
        del self._tries[photo.id]
        yield Outcome(guilty, (), f"{photo.path}: given up after {counted(len(tries), 'worker')}: {reason(error)}")

    def _too_many(self, nodes: Sequence[str | None], most: int, most_lost: int) -> bool:
        """Whether so many workers died, or were lost with their nodes or in another way. ``nodes``: one of each."""
        if len(nodes) < most:
            return False
        there = {None} | {node["NodeID"] for node in self._ray.nodes() if node["Alive"]}
        return len(nodes) >= most_lost or sum(node in there for node in nodes) >= most

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
    return REASONS.get(type(error).__name__, "its process died")

"""The work on many photos, overlapped.

Where photos are searched one at a time, the calling thread searches, while the next photo is read and the last are
finished. Where several are searched at once, each has a thread for all of its steps. The calling thread learns of every
outcome, in order, so what it does with them, and what interrupts it, is as in a loop over the photos. PyTorch is not
needed.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

P = TypeVar("P")
R = TypeVar("R")
Done = Callable[[P, "Future[R]"], None]

BEHIND = 1
"""Most photos that have been searched and are not finished while another is searched."""

PATIENCE = 10.0
"""Seconds that photos which have been searched get to be finished after an interrupt or an error."""


@dataclass(frozen=True)
class Steps(Generic[P, R]):
    """What is done with a photo, one after another; a step takes the photo and what the step before gave."""

    read: Callable[[P], Any]
    """In another thread, while the photo before is searched."""
    search: Callable[[P, Any], Any]
    """In the calling thread."""
    finish: Callable[[P, Any], R]
    """In another thread, while the next photos are searched."""
    is_large: Callable[[P], bool] = lambda photo: False
    """Whether a photo takes so much memory that nothing is done beside it."""
    at_once: int = 1
    """How many photos are searched at once, each in a thread of its own."""


class Worker:
    """Threads that make calls in order. They keep no program from ending: a call may hang with its file system."""

    def __init__(self, name: str, threads: int = 1) -> None:
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads = threads
        for _ in range(threads):
            threading.Thread(target=self._work, name=name, daemon=True).start()

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Queue a call. Its result, or whatever it raises, comes in the future."""
        future: Future[Any] = Future()
        self._calls.put(lambda: _fulfil(future, call, *arguments))
        return future

    def end(self) -> None:
        """Let the threads end after the calls that are queued."""
        for _ in range(self._threads):
            self._calls.put(None)

    def _work(self) -> None:
        # A call is not kept in a variable: it would hold a photo until the next one.
        while _called(self._calls.get()):
            pass


def _called(call: Callable[[], None] | None) -> bool:
    if call is not None:
        call()
    return call is not None


def _fulfil(future: Future[Any], call: Callable[..., Any], *arguments: Any) -> None:
    """Set a future's result, or the error of the call."""
    try:
        future.set_result(call(*arguments))
    except BaseException as error:
        future.set_exception(error)


class Outcomes(Generic[P, R]):
    """The outcomes to come, which ``done`` is called with in order."""

    def __init__(self, done: Done[P, R]) -> None:
        self._done = done
        self._waiting: deque[tuple[P, Future[R]]] = deque()

    def add(self, photo: P, outcome: Future[R], most: int) -> None:
        """Add one, and wait until at most ``most`` are to come."""
        self._waiting.append((photo, outcome))
        self.settle(most)

    def settle(self, most: int) -> None:
        """Wait until at most ``most`` are to come; ``done`` may have been called with more."""
        while len(self._waiting) > most or self._first_is_there():
            wait([self._waiting[0][1]])
            self._done(*self._waiting.popleft())

    def _first_is_there(self) -> bool:
        return bool(self._waiting) and self._waiting[0][1].done()

    @contextmanager
    def kept(self, ended: threading.Event) -> Iterator[None]:
        """Wait for all at the end of the block. After an error, which sets ``ended``, what comes soon is not lost."""
        try:
            yield
            self.settle(0)
        except BaseException:
            ended.set()
            wait([outcome for _, outcome in self._waiting], PATIENCE)
            with suppress(Exception):  # What came first is told.
                while self._first_is_there():
                    self._done(*self._waiting.popleft())
            raise


def overlapped(photos: Sequence[P], steps: Steps[P, R], done: Done[P, R]) -> None:
    """Carry out the steps for all photos and call ``done`` with each photo and its outcome, in order.

    An error of a step is the outcome. An error of ``done``, or an interrupt, ends the work; photos that have been
    searched by then, or are searched at that time in threads of their own, are finished and ``done`` first.
    """
    (_one_at_a_time if steps.at_once == 1 else _several_at_once)(photos, steps, Outcomes(done))


def _one_at_a_time(photos: Sequence[P], steps: Steps[P, R], outcomes: Outcomes[P, R]) -> None:
    reader, finisher = Worker("reader"), Worker("finisher")
    ahead: Future[Any] | None = None
    try:
        with outcomes.kept(threading.Event()):
            for place, photo in enumerate(photos):
                large = steps.is_large(photo)
                if large:
                    outcomes.settle(0)
                reading = ahead or reader.submit(steps.read, photo)
                following = photos[place + 1] if place + 1 < len(photos) else None
                beside = following is not None and not large and not steps.is_large(following)
                ahead = reader.submit(steps.read, following) if beside else None
                outcomes.add(photo, _search(photo, steps, reading, finisher), 0 if large else BEHIND)
                del reading
    finally:
        reader.end()
        finisher.end()


def _several_at_once(photos: Sequence[P], steps: Steps[P, R], outcomes: Outcomes[P, R]) -> None:
    crew, ended = Worker("photo", steps.at_once), threading.Event()

    def whole(photo: P) -> R:
        if ended.is_set():
            raise CancelledError
        return steps.finish(photo, steps.search(photo, steps.read(photo)))

    try:
        with outcomes.kept(ended):
            for photo in photos:
                large = steps.is_large(photo)
                if large:
                    outcomes.settle(0)
                outcomes.add(photo, crew.submit(whole, photo), 0 if large else steps.at_once)
    finally:
        crew.end()


def _search(photo: P, steps: Steps[P, R], reading: Future[Any], finisher: Worker) -> Future[R]:
    """The outcome to come of a photo that has been read."""
    try:
        found = steps.search(photo, reading.result())
    except Exception as error:
        failed: Future[R] = Future()
        failed.set_exception(error)
        return failed
    return finisher.submit(steps.finish, photo, found)

"""The work on many photos, overlapped: while one is searched, the next is read and the last are finished.

The calling thread searches. It also learns of every outcome, in order, so what it does with them, and what interrupts
it, is as in a loop over the photos. PyTorch is not needed.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
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


class Worker:
    """A thread that makes calls in order. It keeps no program from ending: a call may hang with its file system."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Queue a call. Its result, or whatever it raises, comes in the future."""
        future: Future[Any] = Future()
        self._calls.put(lambda: _fulfil(future, call, *arguments))
        return future

    def end(self) -> None:
        """Let the thread end after the calls that are queued."""
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


def overlapped(photos: Sequence[P], steps: Steps[P, R], done: Done[P, R]) -> None:
    """Carry out the steps for all photos and call ``done`` with each photo and its outcome, in order.

    An error of a step is the outcome. An error of ``done``, or an interrupt, ends the work; photos that have been
    searched by then are finished and ``done`` first.
    """
    reader, finisher = Worker("reader"), Worker("finisher")
    searched: deque[tuple[P, Future[R]]] = deque()

    def settle(most: int) -> None:
        while len(searched) > most or (searched and searched[0][1].done()):
            done(*searched.popleft())

    ahead: Future[Any] | None = None
    try:
        for place, photo in enumerate(photos):
            large = steps.is_large(photo)
            if large:
                settle(0)
            reading = ahead or reader.submit(steps.read, photo)
            following = photos[place + 1] if place + 1 < len(photos) else None
            beside = following is not None and not large and not steps.is_large(following)
            ahead = reader.submit(steps.read, following) if beside else None
            searched.append((photo, _search(photo, steps, reading, finisher)))
            del reading
            settle(0 if large else BEHIND)
        settle(0)
    except BaseException:
        wait([outcome for _, outcome in searched], PATIENCE)
        with suppress(Exception):  # What came first is told.
            while searched and searched[0][1].done():
                done(*searched.popleft())
        raise
    finally:
        reader.end()
        finisher.end()


def _search(photo: P, steps: Steps[P, R], reading: Future[Any], finisher: Worker) -> Future[R]:
    """The outcome to come of a photo that has been read."""
    try:
        found = steps.search(photo, reading.result())
    except Exception as error:
        failed: Future[R] = Future()
        failed.set_exception(error)
        return failed
    return finisher.submit(steps.finish, photo, found)

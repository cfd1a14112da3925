"""Many photos at once: the outcome is that of a loop, whatever fails or interrupts it."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future

import pytest

from sharpmask.cli.overlap import Steps, overlapped


class Log:
    """Steps that note when they begin and end, and in which thread."""

    def __init__(
        self, fails: dict[str, BaseException] | None = None, large: tuple[int, ...] = (), at_once: int = 1
    ) -> None:
        self.fails, self.large, self.at_once = fails or {}, large, at_once
        self.events: list[str] = []
        self.threads: dict[str, set[int]] = {}
        self.outcomes: list[tuple[int, object]] = []

    def step(self, name: str, photo: int) -> int:
        self.threads.setdefault(name, set()).add(threading.get_ident())
        self.events.append(f"{name} {photo}")
        time.sleep(0.002)
        if f"{name} {photo}" in self.fails:
            raise self.fails[f"{name} {photo}"]
        self.events.append(f"{name} {photo} ended")
        return photo

    @property
    def steps(self) -> Steps[int, int]:
        return Steps(
            lambda photo: self.step("read", photo),
            lambda photo, read: self.step("search", photo) + 10 * read,
            lambda photo, found: self.step("finish", photo) + 100 * found,
            lambda photo: photo in self.large,
            self.at_once,
        )

    def done(self, photo: int, outcome: Future[int]) -> None:
        self.step("done", photo)
        self.outcomes.append((photo, outcome.exception() or outcome.result()))

    def run(self, count: int = 6) -> None:
        overlapped(range(count), self.steps, self.done)

    def before(self, first: str, second: str) -> bool:
        return self.events.index(first) < self.events.index(second)


def test_outcomes_come_in_order_and_in_the_calling_thread() -> None:
    log = Log()
    log.run()
    assert log.outcomes == [(photo, 1101 * photo) for photo in range(6)]
    assert log.threads["search"] == log.threads["done"] == {threading.get_ident()}
    assert len(log.threads["read"] | log.threads["finish"] | log.threads["search"]) == 3
    Log().run(0)


def test_a_photo_is_read_and_another_finished_while_one_is_searched() -> None:
    """Each step of a photo waits for one of a neighbour, which a loop would never come to."""
    started = [[threading.Event() for _ in range(5)] for _ in range(3)]
    seen = []

    def step(kind: int, photo: int, awaited: threading.Event | None) -> None:
        started[kind][photo].set()
        assert awaited is None or awaited.wait(20)

    steps = Steps[int, None](
        lambda photo: step(0, photo, None),
        lambda photo, _: step(1, photo, started[0][photo + 1] if photo < 4 else None),
        lambda photo, _: step(2, photo, started[1][photo + 1] if photo < 4 else None),
    )
    overlapped(range(5), steps, lambda photo, outcome: seen.append((photo, outcome.result())))
    assert seen == [(photo, None) for photo in range(5)]


def test_few_photos_are_in_memory_at_once() -> None:
    log = Log()
    log.run(8)
    for photo in range(2, 8):
        assert log.before(f"search {photo - 1}", f"read {photo}") or log.before(
            f"search {photo - 2} ended", f"read {photo}"
        )
        assert log.before(f"done {photo - 2} ended", f"search {photo}")


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_large_photo_is_alone(at_once: int) -> None:
    log = Log(large=(2, 3), at_once=at_once)
    log.run()
    assert [photo for photo, _ in log.outcomes] == list(range(6))
    for photo in (2, 3):
        assert log.before(f"done {photo - 1} ended", f"read {photo}")
        assert log.before(f"done {photo} ended", f"read {photo + 1}")


@pytest.mark.parametrize("step", ["read", "search", "finish"])
@pytest.mark.parametrize("photo", [0, 2, 5])
@pytest.mark.parametrize("at_once", [1, 3])
def test_an_error_is_the_photo_s_own_outcome(step: str, photo: int, at_once: int) -> None:
    error = OSError("disk")
    log = Log({f"{step} {photo}": error}, at_once=at_once)
    log.run()
    assert log.outcomes == [(i, error if i == photo else 1101 * i) for i in range(6)]


@pytest.mark.parametrize("photo", [0, 2, 5])
@pytest.mark.parametrize("at_once", [1, 2])
def test_an_error_of_the_caller_s_ends_it_and_is_the_one_raised(photo: int, at_once: int) -> None:
    log = Log({f"done {photo}": OSError("first"), f"done {photo + 1}": OSError("second")}, at_once=at_once)
    with pytest.raises(OSError, match="first"):
        log.run()
    assert [i for i, _ in log.outcomes] == list(range(photo))
    assert f"search {photo + at_once + 2}" not in log.events


@pytest.mark.parametrize("photo", [0, 1, 3, 5])
def test_what_is_searched_is_finished_after_an_interrupt(photo: int) -> None:
    log = Log({f"search {photo}": KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        log.run()
    assert log.outcomes == [(i, 1101 * i) for i in range(photo)]


def test_several_photos_are_searched_at_once() -> None:
    """Each waits for its neighbour's search, which one at a time would never come to."""
    barrier, seen = threading.Barrier(2, timeout=20), list[tuple[int, BaseException | None]]()
    steps = Steps[int, None](lambda photo: None, lambda photo, _: barrier.wait(), lambda photo, _: None, at_once=2)
    overlapped(range(8), steps, lambda photo, outcome: seen.append((photo, outcome.exception())))
    assert seen == [(photo, None) for photo in range(8)]


def test_no_more_than_asked_are_searched_at_once() -> None:
    running, most, lock = set[int](), [0], threading.Lock()

    def search(photo: int, _: None) -> None:
        with lock:
            running.add(photo)
            most[0] = max(most[0], len(running))
        time.sleep(0.002)
        with lock:
            running.remove(photo)

    overlapped(range(12), Steps(lambda photo: None, search, lambda photo, _: None, at_once=3), lambda *_: None)
    assert 1 < most[0] <= 3


def test_what_is_searched_at_once_is_finished_after_an_interrupt() -> None:
    """The third is searched when the first ends the work, and the fourth waits for its turn."""
    third, seen, begun = threading.Event(), list[int](), list[int]()

    def search(photo: int, _: None) -> int:
        begun.append(photo)
        if photo == 2:
            third.set()
        elif photo == 1:
            third.wait(20)
        return photo

    def done(photo: int, outcome: Future[int]) -> None:
        seen.append(outcome.result())
        if photo == 0:
            third.wait(20)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        overlapped(range(20), Steps(lambda photo: None, search, lambda photo, found: found, at_once=2), done)
    assert seen == list(range(len(begun))) and 3 <= len(begun) < 20


def test_a_step_that_hangs_holds_up_no_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sharpmask.cli.overlap.PATIENCE", 0.1)
    hangs, seen = threading.Event(), list[int]()

    def search(photo: int, _: None) -> None:
        if photo == 3:
            raise KeyboardInterrupt

    def finish(photo: int, _: None) -> None:
        if photo == 2:
            hangs.wait(20)

    with pytest.raises(KeyboardInterrupt):
        overlapped(range(5), Steps(lambda photo: None, search, finish), lambda photo, _: seen.append(photo))
    assert not hangs.is_set() and seen == [0, 1]
    hangs.set()


def test_its_threads_end_with_it() -> None:
    before = threading.active_count()
    Log().run()
    with pytest.raises(KeyboardInterrupt):
        Log({"search 2": KeyboardInterrupt()}).run()
    Log(at_once=3).run()
    with pytest.raises(KeyboardInterrupt):
        Log({"done 2": KeyboardInterrupt()}, at_once=3).run()
    end = time.monotonic() + 20
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() <= before

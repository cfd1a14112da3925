"""How long a call takes on a device: with warm and with cold caches, and on the host.

On a GPU the time is that of a replayed graph of calls, between two events: nothing waits for Python. Calls that no
graph can hold, because they wait for the device, are timed by the host's clock. On the CPU all are.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

Run = Callable[[], object]

BATCHES = 5
"""Of which the median is taken."""
SECONDS = 0.02
"""Of a batch."""
MOST = 200
"""Calls of a batch."""
SETS = 3
"""Calls until inputs come again; a graph holds a multiple of them."""


class Times(NamedTuple):
    """Seconds of one call."""

    warm: float
    """Call after call: caches hold what they hold."""
    cold: float
    """With nothing of it in the caches."""
    call: float
    """Until the host can go on."""
    how: str
    """``graph`` or ``host``: what the first two were timed by."""


def times(run: Run, device: torch.device, capture: bool = True) -> Times:
    """``run`` works on other inputs at each call. ``capture``: whether a graph may be tried."""
    for _ in range(SETS):  # the first calls prepare: they compile, choose, allocate
        run()
    if device.type != "cuda":
        taken = on_host(run, lambda: None)
        return Times(taken, taken, taken, "host")
    torch.cuda.synchronize()
    call = launching(run)
    if capture and not waits(run):
        ones = [graph_of(run, 1) for _ in range(SETS)]
        return Times(warm(run, device), cold(ones), call, "graph")
    return Times(on_host(run, torch.cuda.synchronize), on_host(run, torch.cuda.synchronize, flush), call, "host")


def warm(run: Run, device: torch.device) -> float:
    """Seconds of one call after another, as in :func:`times`; of what a graph can hold."""
    if device.type != "cuda":
        return on_host(run, lambda: None)
    return on_device(graph_of(run, 2 * SETS)) / (2 * SETS)


def waits(run: Run) -> bool:
    """Whether a call waits for the device, so that no graph can hold it."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    except RuntimeError as problem:
        if "synchroniz" not in str(problem):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


def graph_of(run: Run, calls: int) -> Run:
    """What replays so many calls."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # as PyTorch asks for before a capture
        for _ in range(SETS):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            run()
    return graph.replay


def between(work: Run, before: Run = lambda: None) -> float:
    """Seconds of work on the device, between two events; ``before`` is not counted."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before()
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def on_device(run: Run) -> float:
    """Seconds of ``run``, one after another."""
    run()
    count = repeats(between(run))

    def batch() -> None:
        for _ in range(count):
            run()

    return float(np.median([between(batch) for _ in range(BATCHES)])) / count


def cold(runs: list[Run]) -> float:
    """Seconds of one of ``runs``, which take turns; before each, all that the caches held is overwritten."""
    taken = [between(run, flush) for _ in range(4 * BATCHES) for run in runs]
    return float(np.median(taken))


def flush() -> None:
    """Overwrites the L2 cache; this takes so long that what follows is queued before it is done."""
    size = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    if size not in _flushed:
        _flushed[size] = torch.empty(4 * size, dtype=torch.int8, device="cuda")
    _flushed[size].zero_()


_flushed: dict[int, torch.Tensor] = {}


def launching(run: Run) -> float:
    """Seconds until the host can go on: Python, checks, PyTorch's dispatcher and the driver."""

    def batch() -> float:
        start = time.perf_counter()
        for _ in range(10):
            run()
        taken = time.perf_counter() - start
        torch.cuda.synchronize()
        return taken / 10

    return float(np.median([batch() for _ in range(BATCHES)]))


def on_host(run: Run, wait: Run, before: Run = lambda: None) -> float:
    """Seconds of ``run`` until its work is done."""

    def once() -> float:
        before()
        wait()
        start = time.perf_counter()
        run()
        wait()
        return time.perf_counter() - start

    count = min(repeats(once()), 25)
    return float(np.median([once() for _ in range(count)]))


def repeats(seconds: float) -> int:
    """Calls that fill a batch."""
    return int(min(MOST, max(3, SECONDS / max(seconds, 1e-7))))

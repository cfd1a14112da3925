"""Times of functions that take turns, and how they are printed."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

import numpy as np

PAUSE = 0.01
"""Seconds before each run. By then, threads of the run before that wait busily for more work have given up."""


def interleaved(runs: Sequence[Callable[[], object]], rounds: int) -> list[np.ndarray]:
    """Seconds of each of ``runs``, as arrays of ``rounds`` each."""
    for run in runs:  # the first call prepares: it compiles, tunes, allocates
        run()
    times = np.empty((len(runs), rounds))
    for turn, i in itertools.product(range(rounds), range(len(runs))):
        times[i, turn] = seconds(runs[i])
    return list(times)


def seconds(run: Callable[[], object]) -> float:
    time.sleep(PAUSE)
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def cell(ratios: np.ndarray) -> str:
    """The median, and half the interquartile range."""
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    return f"{middle:.2f} ± {(high - low) / 2:.2f}"


def milliseconds(times: np.ndarray) -> str:
    return f"{1e3 * np.median(times):.2f} ms"

"""The times of everyone measured on one workload."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from .peers import Contestant
from .roofline import Cost
from .workloads import Workload


class Comparison(NamedTuple):
    workload: Workload
    times: dict[str, np.ndarray]
    """Seconds of every contestant, one for each round."""
    backends: list[str]
    """The contestants that are ours, without the reference."""
    peers: list[str]
    """The contestants that are not ours."""
    cost: Cost

    @property
    def fastest(self) -> str:
        """Our fastest backend."""
        return min(self.backends, key=lambda name: float(np.median(self.times[name])))

    def ratios(self, name: str) -> np.ndarray:
        """The time of a contestant divided by that of our fastest backend, for each round.

        A contestant that was not timed in all rounds is compared with the median of our times.
        """
        ours, theirs = self.times[self.fastest], self.times[name]
        return theirs / (ours if len(theirs) == len(ours) else np.median(ours))

    def ranked(self) -> dict[str, np.ndarray]:
        """The ratios of all peers, the fastest peer first."""
        ratios = {name: self.ratios(name) for name in self.peers}
        return dict(sorted(ratios.items(), key=lambda item: float(np.median(item[1]))))


def compared(
    workload: Workload, times: dict[str, np.ndarray], contestants: Iterable[Contestant], cost: Cost
) -> Comparison:
    timed = [contestant for contestant in contestants if contestant.name in times]
    backends = [c.name for c in timed if c.backend not in (None, "reference")]
    return Comparison(workload, times, backends, [c.name for c in timed if c.backend is None], cost)

"""Which combinations of a test's parameters run: a covering selection, or with ``--full`` the whole product.

A test marked ``grid`` gives all combinations of its parameters. Of these, as many run by default as it takes for every
two values to meet (pairwise testing), on each op and backend. What goes wrong for one value, or for two together, still
shows; 144 combinations become a dozen. A test marked ``grid(whole=False)`` has so many that ``--full`` leaves it at the
selection.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from typing import Any

import pytest


def covering(combinations: Sequence[tuple[Hashable, ...]]) -> set[int]:
    """Indices of combinations that hold every pair of values of any two places. Greedy: few, not the fewest."""
    pairs: list[set[tuple[Any, ...]]] = [
        set(itertools.combinations(enumerate(values), 2)) or {values} for values in combinations
    ]
    missing = set().union(*pairs)
    chosen = set()
    while missing:
        best = max(range(len(pairs)), key=lambda i: len(pairs[i] & missing))
        chosen.add(best)
        missing -= pairs[best]
    return chosen


def left_out(items: Sequence[pytest.Item], full: bool) -> list[pytest.Item]:
    """The tests of ``items`` that do not run, with ``--full`` or without."""
    grids: dict[tuple[str, Hashable], list[pytest.Item]] = {}
    for item in items:
        marker = item.get_closest_marker("grid")
        if marker and hasattr(item, "callspec") and not (full and marker.kwargs.get("whole", True)):
            function = item.nodeid.partition("[")[0]
            grids.setdefault((function, item.callspec.params.get("subject")), []).append(item)
    out = []
    for grid in grids.values():
        # A value is the same object in all combinations; some cannot be hashed.
        chosen = covering([tuple(map(id, item.callspec.params.values())) for item in grid])  # type: ignore[attr-defined]
        out += [item for i, item in enumerate(grid) if i not in chosen]
    return out

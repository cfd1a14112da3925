"""The connection to a Ray cluster, or a small one that is started on this machine."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import DataError
from ..packages import needed
from .pool import Need

OBJECTS = 200_000_000
"""Bytes of shared memory for Ray's objects on this machine; rows are small, and stay there for moments."""


START_SECONDS = "120"
"""How long Ray's processes may take to start. Its own 30 seconds are too few for a busy machine."""


@contextmanager
def connected(address: str, cores: int) -> Iterator[Any]:
    """The module ``ray``, connected for as long as the block lasts, or as it is if the program has connected it.

    ``address``: "local" for a cluster of ``cores`` on this machine, "auto" for the one that runs here, or where one is.
    Nothing is sent to Ray's makers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_raylet_start_wait_time_s", START_SECONDS)
    ray = needed("ray", "cluster ray", "ray")
    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address == "local":
        options |= {"num_cpus": cores, "include_dashboard": False, "object_store_memory": OBJECTS}
    try:
        ray.init(address, **options)
    except (ConnectionError, ValueError) as error:
        raise DataError(f"address: no Ray cluster at {address!r}: {error}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def workers_that_fit(ray: Any, need: Need) -> int:
    """How many workers the cluster has room for."""

    def times(has: float, amount: float) -> int:
        return math.floor(has / amount + 1e-9)  # of 1, 0.2 has room 5 times, though 1 // 0.2 is 4

    def fit(has: dict[str, float]) -> int:
        counts = [times(has.get("CPU", 0), need.cpus), times(has.get("memory", 0), need.memory)]
        if need.gpus:
            gpus = has.get("GPU", 0)
            # A part of a GPU is of one alone: two GPUs have room for 0.4 four times, not five.
            counts.append(int(gpus) * times(1, need.gpus) if need.gpus < 1 else times(gpus, need.gpus))
        return min(counts)

    return sum(fit(node["Resources"]) for node in ray.nodes() if node["Alive"])


def count_workers(ray: Any, need: Need, workers: int | None, say: Callable[[str], None]) -> int:
    """``workers``, or without a number as many as the cluster has room for. Raises ``DataError`` where it has none."""
    fit = workers_that_fit(ray, need)
    if workers is None and not fit:
        raise DataError(
            f"workers: the cluster has no room for one, which takes {need}; "
            "give a number of workers to wait for a cluster that grows"
        )
    if workers is not None and workers > fit:
        say(f"{workers} workers were asked for, and the cluster has room for {fit}: each takes {need}")
    return workers or fit

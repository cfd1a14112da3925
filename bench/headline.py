"""What ``python -m bench.compare --headline`` measures: our kernels against the best peer of each kind of work."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from . import isa, machine, roofline
from .comparison import Comparison, compared
from .measure import DTYPES, Setting
from .peers import PEERS, Contestant, contestants
from .roofline import Peak
from .timing import cell, interleaved, milliseconds, seconds
from .workloads import FULL, LEVELS, SMALL, Sizes, Workload, encode_windows, refine_windows, refinement

HEADER = ["ours", "of the peak", "times as fast as the best peer", "best peer", "as the others"]
"""After the cell that names the instruction set."""

HOPELESS = 2.0
"""A peer whose first run takes so many times as long as the best peer's is not timed again."""


class Row(NamedTuple):
    work: str
    workload: Workload
    rival: Workload
    """What the peers compute, where it differs."""
    peers: frozenset[str] | None = None
    """The peers that are measured; None: all."""


def rows(sizes: Sizes) -> Iterator[Row]:
    few, many = sizes.windows[0], sizes.windows[-1]
    for count, threshold in ((many, None), (many, 0.2), (few, None)):
        ours = refine_windows.workload(count, sizes.photo, threshold=threshold)
        # Peers pad with zeros, which costs them less.
        rival = refine_windows.workload(count, sizes.photo, "zeros", threshold)
        yield Row(f"refine_windows, {count} windows, {'fp32 logits' if threshold is None else 'bits'}", ours, rival)
    encode = encode_windows.workload(many, sizes.photo)
    yield Row(f"encode_windows, {many} windows, against crops", encode, encode, frozenset({"eager", "crop-first"}))
    yield Row(f"encode_windows, {many} windows, against full-size masks", encode, encode, frozenset({"full-size"}))
    every = refinement.all_levels(sizes.batch)
    works = {f"level {level}": refinement.workload("refine", level - 1, sizes.batch) for level in (4, 3, 2, 1)}
    works |= {
        "all levels": every,
        "all levels, features of 64 channels": refinement.all_levels(sizes.batch, 64),
    }
    for work, workload in works.items():
        yield Row(f"refine, {work}, forward", workload, workload)
    features = frozenset(range(1, 1 + len(LEVELS)))
    for work, fixed in (("features frozen", features), ("all trained", frozenset())):
        workload = every._replace(training=True, frozen=fixed)
        yield Row(f"refine, all levels, forward and backward, {work}", workload, workload)


def peak(device: torch.device) -> tuple[Peak | None, str]:
    """What the machine could do at best, and in words, or why that is not known."""
    if device.type != "cpu":
        return None, "measured on CPUs only"
    try:
        found = roofline.measure(machine.processor(device)[1], torch.get_num_threads())
    except RuntimeError as error:
        return None, str(error)
    return found, str(found)


def comparisons(options: Namespace) -> Iterator[tuple[str, Comparison]]:
    """What was done, in words, and the times, one row after another."""
    for row in rows(SMALL if options.small else FULL):
        if row.workload.op in (options.op or [row.workload.op]):
            yield row.work, measured(row, options)


def measured(row: Row, options: Namespace) -> Comparison:
    kind = DTYPES[options.dtype], torch.device(options.device)
    found, _ = contestants(row.rival, *kind, options.peer or PEERS)
    ready = Setting(row.workload, *kind)
    # Both settings come before any runner: a new setting makes PyTorch forget what was compiled.
    rival = ready if row.rival is row.workload else Setting(row.rival, *kind)
    runs = runners(row, found, ready, rival)
    ours = {contestant.name for contestant in found if contestant.backend}
    # One run of everyone first. Peers far behind the best one are not timed again.
    times = {name: np.array([seconds(run)]) for name, run in runs.items()}
    limit = HOPELESS * min(times[name][0] for name in runs if name not in ours)
    close = [name for name in runs if name in ours or times[name][0] <= limit]
    times |= zip(close, interleaved([runs[name] for name in close], options.rounds), strict=True)
    return compared(row.workload, times, found, ready.cost)


def runners(row: Row, contestants: list[Contestant], ready: Setting, rival: Setting) -> dict[str, Callable[[], None]]:
    """Functions to be timed: of our backends on ``ready``, then of the peers that can do this work, on ``rival``."""
    ours, peers = {}, {}
    for contestant in contestants:
        if contestant.backend == "reference":
            continue
        if contestant.backend:
            ours[contestant.name] = ready.runner(contestant)
        elif row.peers is None or contestant.name in row.peers:
            try:
                peers[contestant.name] = rival.runner(contestant)
            except Exception as error:  # it cannot run this module, or its result is wrong
                print(f"{contestant.name} fails on {row.work}: {str(error).splitlines()[0]}", flush=True)
    return ours | peers


def cells(work: str, comparison: Comparison, peak: Peak | None) -> list[str]:
    """A row of the table. The best peer is one that is held to the same instruction set."""
    fastest = comparison.fastest
    times = comparison.times[fastest]
    (best, ratios), *others = sorted(comparison.ranked().items(), key=lambda item: isa.MARK in item[0])
    return [
        work,
        f"{milliseconds(times)} ({fastest})",
        peak.share(comparison.cost, float(np.median(times))) if peak else "-",
        cell(ratios),
        best,
        ", ".join(f"{name} {np.median(ratios):.2f}" for name, ratios in others),
    ]

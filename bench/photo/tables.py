"""Tables of results, as rows of cells."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..timing import cell
from .contenders import BEFORE, INT8, OPENVINO, OURS
from .results import Measured, Results, threads_of

Rows = list[list[str]]


def ratios(slower: Measured, faster: Measured) -> np.ndarray:
    """The time of the one divided by the other's, round by round.

    One that was not timed in all rounds is compared with the median of the other's times.
    """
    own = faster.seconds if len(slower.seconds) == len(faster.seconds) else [faster.median]
    return np.array(slower.seconds) / np.array(own)


def best_peer(found: Iterable[Measured]) -> Measured | None:
    """The fastest contender that is neither of this repository nor of an earlier commit of it."""
    return min((m for m in found if m.group == "peer"), key=lambda m: m.median, default=None)


def megabytes(peak: int | None) -> str:
    return "-" if peak is None else f"{peak / 1e6:.0f} MB"


def setting(results: Results, model: str, threads: int) -> Rows:
    """Everyone on one model: seconds a photo, how many times as long as ours, peak memory."""
    counts = sorted({m.count for m in results.measured if (m.model, m.threads) == (model, threads)})
    by_name: dict[str, dict[int, Measured]] = {}
    for count in counts:
        for found in results.find(model, threads, count):
            by_name.setdefault(found.name, {})[count] = found
    rows = [["", *(f"N = {count}" for count in counts), f"times ours, N = {counts[-1]}", f"memory, N = {counts[-1]}"]]
    ours = by_name.get(OURS)
    for name, own in by_name.items():
        last = own.get(counts[-1])
        times = cell(ratios(last, ours[counts[-1]])) if last and ours and name != OURS else ""
        medians = (f"{own[count].median:.3f} s" if count in own else "-" for count in counts)
        rows.append([name, *medians, times, megabytes(last.peak if last else None)])
    return rows


def orientation(results: Results) -> Rows:
    """Other systems, which find other masks."""
    rows = [["system, random weights", "threads", "a photo", "memory"]]
    for found in results.measured:
        if found.group == "other":
            rows.append([found.name, str(found.threads), f"{found.median:.1f} s", megabytes(found.peak)])
    return rows


def stages(results: Results) -> Rows:
    """Where our time goes, with the most threads and windows, in milliseconds."""
    own = [m for m in results.measured if m.name == OURS]
    most = max(((m.threads, m.count) for m in own), default=None)
    own = [m for m in own if (m.threads, m.count) == most]
    rows = [["", *(f"{m.model}, {threads_of(m.threads)}, N = {m.count}" for m in own)]]
    for stage in dict.fromkeys(stage for m in own for stage in m.stages):
        rows.append([stage, *(f"{1e3 * m.stages[stage]:.0f} ms" if stage in m.stages else "-" for m in own)])
    return rows


def many(results: Results) -> Rows:
    """Photos a second."""
    rows = [["", "photos a second", "times the loop"]]
    if results.many:
        loop = np.array(results.many[0].rates)
        for way in results.many:
            times = cell(np.array(way.rates) / loop) if way is not results.many[0] else ""
            rows.append([way.name, f"{np.median(way.rates):.2f}", times])
    return rows


def summary(results: Results) -> Rows:
    """The ratios that matter, at the largest numbers of threads and windows."""
    rows = [["", "default install", "openvino extra"]]
    threads = max((m.threads for m in results.measured if m.group == "ours"), default=0)
    for model in dict.fromkeys(m.model for m in results.measured if m.group == "ours"):
        counts = sorted({m.count for m in results.measured if (m.model, m.threads) == (model, threads)})
        last = results.find(model, threads, counts[-1])
        names = {m.name: m for m in last}
        ours = [names.get(name) for name in (OURS, OPENVINO)]
        title = f"{model}, N = {counts[-1]}"
        if BEFORE in names:
            rows.append([f"{title}: times as fast as the commit before", *_as_fast(names[BEFORE], ours)])
        if peer := best_peer(last):
            rows.append([f"{title}: times as fast as the best peer ({peer.name})", *_as_fast(peer, ours)])
        if len(counts) > 1:
            few = {m.name: m for m in results.find(model, threads, counts[0])}
            shares = (cell(ratios(few[m.name], m)) if m and m.name in few else "-" for m in ours)
            rows.append([f"{model}: time of N = {counts[0]} as a share of N = {counts[-1]}", *shares])
        if INT8 in names and OPENVINO in names:
            rows.append([f"{title}: int8, times as fast as fp32", "-", cell(ratios(names[OPENVINO], names[INT8]))])
        if BEFORE in names and names[BEFORE].peak:
            before = names[BEFORE].peak
            shares = (f"{m.peak / before:.2f}" if m and m.peak and before else "-" for m in ours)
            rows.append([f"{title}: peak memory as a share of the commit before's", *shares])
    for name, _, times in many(results)[2:]:
        rows.append([f"{results.many[0].photos} photos: {name}, photos a second over a plain loop's", times, "-"])
    return rows


def _as_fast(slower: Measured, ours: Iterable[Measured | None]) -> list[str]:
    return [cell(ratios(slower, m)) if m else "-" for m in ours]


def sections(results: Results) -> dict[str, Rows]:
    """All tables, by their titles."""
    found = {
        f"{model}, {threads_of(threads)}": setting(results, model, threads)
        for model, threads in results.settings()
        if any(m.group != "other" for m in results.measured if (m.model, m.threads) == (model, threads))
    }
    found["Ratios"] = summary(results)
    found["Where the time of ours goes, in one of the rounds"] = stages(results)
    if any(m.group == "other" for m in results.measured):
        found["For orientation"] = orientation(results)
    if results.many:
        found[f"{results.many[0].photos} photos"] = many(results)
    return found

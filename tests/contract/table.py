"""A pytest plugin: the table of what ran on which backend.

Not part of conftest.py: under pytest-xdist the workers load that when they collect the tests, while this counts where
their reports arrive.
"""

from __future__ import annotations

import collections
from typing import Any

import pytest

PROPERTY = "subject"
"""The property of a test's report: its op, backend, device, and why that backend is missing, if it is."""

_outcomes: dict[tuple[str, str], collections.Counter[str]] = collections.defaultdict(collections.Counter)
_missing: dict[str, str] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    subject = dict(report.user_properties).get(PROPERTY)
    if isinstance(subject, list) and (report.when == "call" or report.outcome != "passed"):
        op, backend, device, missing = subject
        _outcomes[op, backend + (f" ({device})" if device != "cpu" else "")][report.outcome] += 1
        if missing:
            _missing[backend] = missing


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not _outcomes:
        return
    backends = sorted({backend for _, backend in _outcomes})
    terminalreporter.section("contract: tests passed (failed, skipped) by op and backend")
    rows = [["", *backends]]
    for op in sorted({op for op, _ in _outcomes}):
        rows.append([op, *(_cell(_outcomes.get((op, backend))) for backend in backends)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        terminalreporter.write_line("  ".join([first.ljust(widths[0]), *cells]))
    for backend, reason in sorted(_missing.items()):
        terminalreporter.write_line(f"{backend} skipped: {reason}")


def _cell(counts: collections.Counter[str] | None) -> str:
    if counts is None:
        return "-"
    rest = [f"{counts[outcome]} {outcome}" for outcome in ("failed", "skipped") if counts[outcome]]
    return f"{counts['passed']}" + (f" ({', '.join(rest)})" if rest else "")

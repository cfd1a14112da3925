"""Poisoned memory, planted faults, and a table of what ran on which backend."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import pytest
import torch

from . import faults
from .subjects import Subject, missing


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault", choices=sorted(faults.FAULTS), help="plant a fault in the reference (see faults.py)")


@pytest.fixture(scope="session", autouse=True)
def fault(request: pytest.FixtureRequest) -> Any:
    name = request.config.getoption("--fault")
    with pytest.MonkeyPatch.context() as patch:
        if name:
            plant, _ = faults.FAULTS[name]
            plant(patch)
        yield


@pytest.fixture(scope="session", autouse=True)
def exact_convolutions() -> None:
    """PyTorch's own, on a GPU: fp32 in full, and the same bits again. The reference is made of them."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = True


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """New memory is full of NaN (of 0x55 for integers): a kernel that leaves cells unwritten shows."""

    def fill(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def made(*args: Any, **kwargs: Any) -> torch.Tensor:
            x = make(*args, **kwargs)
            return x.fill_(float("nan") if x.is_floating_point() else 0x55)

        return made

    monkeypatch.setattr(torch, "empty", fill(torch.empty))
    monkeypatch.setattr(torch, "empty_like", fill(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", fill(torch.Tensor.new_empty))


# The table: outcomes by op and backend.

_outcomes: dict[tuple[str, str], collections.Counter[str]] = collections.defaultdict(collections.Counter)
_subjects: dict[str, Subject] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        subject = getattr(item, "callspec", None) and item.callspec.params.get("subject")  # type: ignore[attr-defined]
        if isinstance(subject, Subject):
            _subjects[item.nodeid] = subject


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.nodeid in _subjects and (report.when == "call" or report.outcome != "passed"):
        subject = _subjects[report.nodeid]
        column = subject.backend + (" (cuda)" if subject.device == "cuda" else "")
        _outcomes[subject.op, column][report.outcome] += 1


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
    for backend in {s.backend for s in _subjects.values()}:
        if reason := missing(backend):
            terminalreporter.write_line(f"{backend} skipped: {reason}")


def _cell(counts: collections.Counter[str] | None) -> str:
    if counts is None:
        return "-"
    rest = [f"{counts[outcome]} {outcome}" for outcome in ("failed", "skipped") if counts[outcome]]
    return f"{counts['passed']}" + (f" ({', '.join(rest)})" if rest else "")

"""``pytest bench --benchmark-only``: every op on every backend, next to plain PyTorch."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from .measure import trace
from .options import Case, setting
from .peers import Contestant


def test_op(benchmark: BenchmarkFixture, case: Case, contestant: Contestant, pytestconfig: pytest.Config) -> None:
    options, name = pytestconfig.option, case.workload.name
    run = setting(case, options).runner(contestant)
    run()  # the first call prepares: it compiles, tunes, allocates
    benchmark.group = f"{name} {options.dtype}"
    benchmark(run)
    if options.profile:
        trace(run, options.profile, f"{name} {contestant.name}")

"""``pytest bench --benchmark-only``: every op on every backend, next to plain PyTorch."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from .measure import Setting, trace
from .peers import Contestant


def test_op(benchmark: BenchmarkFixture, ready: Setting, contestant: Contestant, pytestconfig: pytest.Config) -> None:
    run = ready.runner(contestant)
    run()  # the first call prepares: it compiles, tunes, allocates
    benchmark.group = f"{ready.name} {pytestconfig.option.dtype}"
    benchmark(run)
    if pytestconfig.option.profile:
        trace(run, pytestconfig.option.profile, f"{ready.name} {contestant.name}")

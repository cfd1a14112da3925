"""``pytest bench --benchmark-only``: options, parameters, and what is printed and saved with the times."""

from __future__ import annotations

from typing import Any

import pytest

from .options import Case, add_options, cases, header

# With pytest-benchmark's own defaults, a whole run would take several times as long.
DEFAULTS = {"--benchmark-max-time": 0.3, "--benchmark-min-rounds": 3}

CASES = pytest.StashKey[list[Case]]()
HEADER = pytest.StashKey[dict[str, str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser.getgroup("bench", "what is measured").addoption)


@pytest.hookimpl(tryfirst=True)  # before pytest-benchmark reads its options
def pytest_configure(config: pytest.Config) -> None:
    given = [argument.partition("=")[0] for argument in config.invocation_params.args]
    for name, value in DEFAULTS.items():
        if name not in given:
            setattr(config.option, name.strip("-").replace("-", "_"), value)
    if config.option.benchmark_columns is None:
        config.option.benchmark_columns = ["median", "iqr", "min", "rounds"]
    config.stash[CASES] = cases(config.option)
    config.stash[HEADER] = header(config.option, config.stash[CASES])


def pytest_report_header(config: pytest.Config) -> list[str]:
    return [f"{name}: {value}" for name, value in config.stash[HEADER].items()]


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["bench"] = config.stash[HEADER]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "contestant" not in metafunc.fixturenames:
        return
    metafunc.parametrize(
        ("case", "contestant"),
        [
            pytest.param(case, contestant, id=f"{case.workload.name}-{contestant.name}".replace(" ", "-"))
            for case in metafunc.config.stash[CASES]
            for contestant in case.contestants
        ],
    )

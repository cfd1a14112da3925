"""The table of routes: its look-up, its file, and what measures it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sharpmask_kernels import env, tune
from sharpmask_kernels.backends.cpu import device, routes

pytestmark = pytest.mark.skipif(device.unavailable() is not None, reason="the C++ kernels are not compiled")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A cache folder of its own, and nothing read before."""

    def forget() -> None:
        routes.table.cache_clear()
        routes._chosen.cache_clear()

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(routes.VARIABLE, raising=False)
    forget()
    yield
    monkeypatch.undo()
    forget()


def rows(letter: Callable[[str], str] = lambda step: routes.STEPS[step][-1][0]) -> routes.Rows:
    count = len(routes.CHANNELS)
    return {
        routes.row_name(step, last, cells): [letter(step) * count] * count
        for step in routes.STEPS
        for last in (False, True)
        for cells in routes.CELLS
    }


def table(**changed: Any) -> dict[str, Any]:
    return {device.module().isa(): {**routes.measured_here(), "rows": rows(), **changed}}


def route(step: str, outputs: int, inputs: int, like: torch.Tensor, channels_last: bool = False) -> str:
    return routes.choose(step, torch.empty(outputs, inputs, 3, 3), like, channels_last)


def written(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("size", "nearest"),
    [(0, 4), (1, 4), (5, 4), (6, 8), (11, 8), (12, 16), (23, 32), (24, 32), (512, 512), (9999, 512)],
)
def test_sizes_in_between_go_to_the_nearest(size: int, nearest: int) -> None:
    assert routes.CHANNELS[routes._nearest(size, routes.CHANNELS)] == nearest


@pytest.mark.parametrize(
    ("cells", "nearest"), [(1, 64), (180, 64), (182, 512), (1449, 4096), (10_000, 4096), (10**9, 32768)]
)
def test_numbers_of_cells_in_between_go_to_the_nearest(cells: int, nearest: int) -> None:
    assert routes.CELLS[routes._nearest(cells, routes.CELLS)] == nearest


def test_a_letter_is_found_where_it_stands() -> None:
    words = ["r" * 8] * 8
    words[3] = "rrrrtrrr"
    found = routes.Table("", {"merge channels_last 512": words})
    taken = {
        (outputs, inputs)
        for outputs in routes.CHANNELS
        for inputs in routes.CHANNELS
        if found.route("merge", outputs, inputs, 500, True) == "tiles"
    }
    assert taken == {(32, 64)}
    assert found.route("merge", 32, 64, 500, False) is None


def test_the_shipped_table_is_whole() -> None:
    shipped = routes.contents(routes.SHIPPED)
    assert shipped.keys() == {"avx2", "avx512"}
    for of_isa in shipped.values():
        assert of_isa["rows"].keys() == rows().keys()
        for name, words in of_isa["rows"].items():
            routes.check_row(name, words)


def test_few_channels_go_row_by_row_without_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(routes.VARIABLE, "off")
    assert route("merge", 4, 8, torch.empty(1, 4, 7, 7)) == "rows"
    assert route("input", 4, 256, torch.empty(1, 4, 7, 7)) == "product"


def test_double_precision_needs_no_table() -> None:
    written(routes.measured_file(), table())
    assert route("merge", 512, 512, torch.empty(1, 1, 9, 9, dtype=torch.float64)) == "rows"
    assert route("merge", 512, 512, torch.empty(1, 1, 9, 9)) == "library"


def test_a_measured_table_comes_before_the_shipped_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert str(routes.SHIPPED) in routes.table().source
    path = written(routes.measured_file(), table())
    routes.table.cache_clear()
    assert str(path) in routes.table().source
    assert ("table of routes", routes.table().source) in env.compiled_module()
    other = written(tmp_path / "other.json", table())
    for value, source in ((str(other), str(other)), ("shipped", str(routes.SHIPPED)), ("off", "none")):
        monkeypatch.setenv(routes.VARIABLE, value)
        routes.table.cache_clear()
        assert source in routes.table().source


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "must be JSON"),
        ("[" * 100_000, "must be JSON"),
        ("[]", "must be a JSON object"),
        (" " * (routes.MOST_BYTES + 1), "at most 1048576 bytes"),
        ({"cpu": "another"}, "must be measured with cpu"),
        ({"kernels": "0"}, "must be measured with kernels"),
        ({"torch": "1.0"}, "must be measured with torch"),
        ({"rows": []}, "must be an object with rows"),
        ({"rows": {"merge sideways 64": ["r" * 8] * 8}}, "must be named as in 'merge contiguous 64'"),
        ({"rows": {"merge contiguous 64": ["r" * 8] * 7}}, "8 words of 8 letters of lrt"),
        ({"rows": {"merge contiguous 64": ["r" * 8] * 7 + ["rrrrrrrp"]}}, "8 words of 8 letters of lrt"),
        ({"rows": {"merge contiguous 64": "r" * 64}}, "8 words of 8 letters of lrt"),
    ],
    ids=range(12),
)
def test_a_file_that_is_no_table_is_ignored_with_one_warning(
    content: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    if isinstance(content, dict):
        content = table(**content)
    path = written(routes.measured_file(), content)
    with caplog.at_level(logging.WARNING, "sharpmask_kernels"):
        for _ in range(3):
            assert str(routes.SHIPPED) in routes.table().source
    (message,) = caplog.messages
    assert str(path) in message and reason in message


def test_a_file_that_is_asked_for_and_missing_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv(routes.VARIABLE, str(tmp_path / "none.json"))
    assert str(routes.SHIPPED) in routes.table().source
    assert "cannot be read" in caplog.text


def test_forced_routes_end_with_the_block() -> None:
    like = torch.empty(1, 1, 9, 9)
    before = route("skip", 4, 4, like)
    with routes.forced(skip="library"), routes.forced(merge="tiles"):
        assert route("skip", 4, 4, like) == "library"
        assert route("merge", 4, 4, like) == "tiles"
    assert route("skip", 4, 4, like) == before


def test_tune_writes_a_table_that_is_used(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    measured: list[tune.Size] = []

    def times(size: tune.Size) -> dict[str, float]:
        measured.append(size)
        return {route: 3.0 - i for i, route in enumerate(routes.STEPS[size.step][:2])}

    monkeypatch.setattr(tune, "times", times)
    assert tune.main([]) == 0
    assert "100%" in capsys.readouterr().err
    assert str(routes.measured_file()) in routes.table().source
    assert route("merge", 8, 8, torch.empty(1, 1, 8, 8)) == "tiles"
    larger = [size for size in measured if size.cells > routes.CELLS[0]]
    assert larger and max(size.products for size in larger) <= tune.MOST_PRODUCTS
    assert [path.name for path in routes.measured_file().parent.iterdir()] == [routes.measured_file().name]
    assert max(map(len, routes.measured_file().read_text().splitlines())) < 200


def test_tune_wants_a_thread(capsys: pytest.CaptureFixture[str]) -> None:
    for threads in ("0", "-1"):
        with pytest.raises(SystemExit):
            tune.main([f"--threads={threads}"])
        assert f"--threads must be at least 1, got {threads}" in capsys.readouterr().err


def test_tune_keeps_what_the_file_has_for_other_instruction_sets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = written(tmp_path / "routes.json", {"another": {"rows": {}}, device.module().isa(): {}})
    monkeypatch.setattr(tune, "times", lambda size: dict.fromkeys(routes.STEPS[size.step], 1.0))
    assert tune.main([f"--out={path}"]) == 0
    assert routes.contents(path)["another"] == {"rows": {}}
    assert routes.read(path, routes.measured_here()).rows.keys() == rows().keys()
    written(path, "no table")
    assert tune.main([f"--out={path}"]) == 0
    assert routes.contents(path).keys() == {device.module().isa()}


def test_another_route_must_gain() -> None:
    assert tune.fastest({"rows": 1.0, "tiles": 0.98}, "rows") == "rows"
    assert tune.fastest({"rows": 1.0, "tiles": 0.9}, "rows") == "tiles"


@pytest.mark.parametrize("step", routes.STEPS)
@pytest.mark.parametrize("last", [False, True])
def test_every_route_is_timed(step: str, last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "SECONDS", 0)
    assert tune.times(tune.Size(step, last, 64, 4, 8)).keys() == set(routes.STEPS[step])


def test_tune_says_where_it_cannot_write(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "times", lambda size: dict.fromkeys(routes.STEPS[size.step], 1.0))
    assert tune.main(["--out=/proc/none/routes.json"]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_tune_needs_the_kernels(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(device, "_load", lambda: "no compiler")
    assert tune.main([]) == 1
    assert "no compiler" in capsys.readouterr().err

"""Plain data to typed settings and back."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from sharpmask.errors import DataError
from sharpmask.models import ModelConfig
from sharpmask.plain import from_plain, to_plain
from sharpmask.ranges import Range, Settings


@dataclass(frozen=True)
class Inner(Settings):
    size: int = 3
    names: tuple[str, ...] = ("a",)


@dataclass(frozen=True)
class Outer(Settings):
    rate: Annotated[float, Range(0, 1e300)]
    inner: Inner = field(default_factory=Inner)
    kind: Literal["one", "two"] = "one"
    folder: Path | None = None
    limit: float | None = 0.5
    flag: bool = False
    tagged: Annotated[int, "for a person"] = 1


FULL: dict[str, Any] = {
    "rate": 0.25,
    "inner": {"size": 5, "names": ["x", "y"]},
    "kind": "two",
    "folder": "a/b",
    "limit": None,
    "flag": True,
    "tagged": 4,
}


def test_round_trip() -> None:
    config = from_plain(Outer, FULL, "file")
    assert config == Outer(0.25, Inner(5, ("x", "y")), "two", Path("a/b"), None, True, 4)
    assert to_plain(config) == FULL
    model = ModelConfig(mask_channels=(8, 8, 4, 4, 2))
    assert from_plain(ModelConfig, to_plain(model), "file") == model


def test_plain_data_share_nothing_with_the_config() -> None:
    config = Outer(1.0)
    to_plain(config)["inner"]["size"] = 99
    assert config.inner.size == 3


def test_what_is_left_out_comes_from_the_defaults_or_the_base() -> None:
    assert from_plain(Outer, {"rate": 1}, "file") == Outer(1.0)
    base = Outer(2.0, Inner(7, ("z",)), "two", flag=True)
    assert from_plain(Outer, {"kind": "one"}, "file", base) == Outer(2.0, Inner(7, ("z",)), "one", flag=True)
    assert from_plain(Outer, {"inner": {"size": 8}}, "file", base).inner == Inner(8, ("z",))
    assert from_plain(Outer, {"inner": {"size": 8}, "rate": 0}, "file").inner == Inner(8, ("a",))


def test_integers_are_numbers() -> None:
    rate = from_plain(Outer, {"rate": 3}, "file").rate
    assert rate == 3 and type(rate) is float
    assert math.isinf(from_plain(Outer, {"rate": 1, "limit": math.inf}, "file").limit or 0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "run.yaml: expected settings by name, got list"),
        (None, "run.yaml: expected settings by name, got NoneType"),
        ({"rate": 1, "speed": 2}, "run.yaml: unknown setting 'speed'; known are rate, inner, kind, folder"),
        ({"rate": 1, 5: 2}, "run.yaml: unknown setting '5'"),
        ({}, "run.yaml: rate is missing"),
        ({"rate": -1}, "run.yaml: rate must be a number from 0 to 1e\\+300, got -1"),
        ({"rate": "fast"}, "run.yaml: rate must be a number from 0 to 1e\\+300, got 'fast'"),
        ({"rate": True}, "run.yaml: rate must be a number from 0 to 1e\\+300, got True"),
        ({"rate": None}, "run.yaml: rate must be a number from 0 to 1e\\+300, got None"),
        ({"rate": 10**400}, r"run.yaml: rate must be a number .*, got an integer beyond what a float can hold"),
        ({"rate": 1, "inner": 4}, "run.yaml: inner: expected settings by name, got int"),
        ({"rate": 1, "inner": {"size": 1.5}}, "run.yaml: inner: size must be a whole number, got 1.5"),
        ({"rate": 1, "inner": {"size": True}}, "run.yaml: inner: size must be a whole number, got True"),
        ({"rate": 1, "inner": {"sizes": 1}}, "run.yaml: inner: unknown setting 'sizes'; did you mean size\\?"),
        ({"rate": 1, "inner": {"names": "xy"}}, "run.yaml: inner: names must be a list, got 'xy'"),
        ({"rate": 1, "inner": {"names": ["x", 2]}}, "run.yaml: inner: names must be of type str, got 2"),
        ({"rate": 1, "kind": "three"}, "run.yaml: kind must be one of 'one', 'two', got 'three'"),
        ({"rate": 1, "kind": []}, r"run.yaml: kind must be one of 'one', 'two', got \[\]"),
        ({"rate": 1, "folder": 3}, "run.yaml: folder must be a path, got 3"),
        ({"rate": 1, "limit": "x"}, "run.yaml: limit must be a number, got 'x'"),
        ({"rate": 1, "flag": 1}, "run.yaml: flag must be of type bool, got 1"),
        ({"rate": 1, "flag": "yes"}, "run.yaml: flag must be of type bool, got 'yes'"),
        ({"rate": 1, "tagged": "4"}, "run.yaml: tagged must be a whole number, got '4'"),
    ],
)
def test_refusals(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        from_plain(Outer, data, "run.yaml")
    assert "\n" not in str(error.value)

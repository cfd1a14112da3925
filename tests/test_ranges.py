"""Every number among the settings has its range, and nothing outside it becomes a setting."""

from __future__ import annotations

import importlib
import math
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest

import sharpmask
from sharpmask.cli.overlap import Steps
from sharpmask.convert.layers import Layer
from sharpmask.data.tile_config import TileConfig
from sharpmask.errors import DataError
from sharpmask.models import ModelConfig, SearchConfig
from sharpmask.plain import from_plain, read_yaml
from sharpmask.ranges import Length, Range, Settings, field_types
from sharpmask.training import TrainConfig


def all_settings() -> list[type]:
    """The classes that a user sets: those of settings, and frozen dataclasses with a number that has a default."""
    found: set[type] = set()
    for module in pkgutil.walk_packages(sharpmask.__path__, "sharpmask."):
        if module.name.endswith("__main__"):
            continue
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and is_dataclass(value) and value.__module__.startswith("sharpmask."):
                defaults = [str(f.type) for f in fields(value) if f.default is not MISSING]
                number = any(re.search(r"\b(int|float)\b", text) for text in defaults)
                if issubclass(value, Settings) or (number and vars(value)["__dataclass_params__"].frozen):
                    found.add(value)
    return sorted(found - {Range, Layer, Steps}, key=lambda cls: cls.__name__)


def unlimited(hint: Any, limits: tuple[Any, ...] = ()) -> Iterator[str]:
    """What is a number without a range, or a list of numbers without a length, in a type."""
    if get_origin(hint) is Annotated:
        inner, *notes = get_args(hint)
        yield from unlimited(inner, (*limits, *notes))
    elif hint in (int, float):
        if not any(isinstance(note, Range) for note in limits):
            yield "a number without a range"
    elif get_origin(hint) is tuple:
        numbers = any(isinstance(a, Range) for arg in get_args(hint) for a in get_args(arg)[1:])
        if numbers and get_args(hint)[-1] is Ellipsis and not any(isinstance(note, Length) for note in limits):
            yield "numbers without a length"
        for arg in get_args(hint):
            yield from unlimited(arg)
    else:
        for arg in get_args(hint):
            yield from unlimited(arg)


def test_every_number_among_the_settings_has_a_range() -> None:
    classes = all_settings()
    assert {"TrainConfig", "TileConfig", "ModelConfig", "SearchConfig", "ProposalGenerator"} <= {
        c.__name__ for c in classes
    }
    for cls in classes:
        assert issubclass(cls, Settings), cls
        for name, hint in field_types(cls).items():
            assert not list(unlimited(hint)), f"{cls.__name__}.{name}"


def of_numbers(base: Settings) -> Iterator[tuple[str, Any, Range]]:
    """The fields of settings that are a number or a list of them, with the value and the range."""
    for name, hint in field_types(type(base)).items():
        notes: list[Any] = []
        todo = [hint]
        while todo:
            part = todo.pop()
            notes += get_args(part)[1:] if get_origin(part) is Annotated else []
            todo += [a for a in get_args(part) if not isinstance(a, Range | Length)]
        ranges = [note for note in notes if isinstance(note, Range)]
        if ranges:
            yield name, getattr(base, name), ranges[0]


@pytest.mark.parametrize(
    "base",
    [TrainConfig((Path("a"),), Path("b")), TileConfig(), ModelConfig(), SearchConfig(ranking=(0.0,) * 14)],
    ids=lambda b: type(b).__name__,
)
def test_values_out_of_range_are_refused_by_name(base: Settings) -> None:
    tried = 0
    for name, old, limit in of_numbers(base):
        beyond = [
            math.nan,
            math.inf,
            -math.inf,
            "x",
            True,
            [],
            {},
            10**400,
            limit.least - 1,
            limit.most + max(1, limit.most),
        ]
        for value in [*beyond, *([limit.least] if limit.above else []), *([limit.most] if limit.below else [])]:
            wrong: Any = (*old[:-1], value) if isinstance(old, tuple) and old else value
            with pytest.raises(DataError) as error:
                replace(base, **{name: wrong})  # type: ignore[type-var]
            assert str(error.value).startswith(f"{name} must ") and "\n" not in str(error.value)
            tried += 1
    assert tried > 30


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TileConfig(side=100_000), "side must be a multiple of 16 from 16 to 4096, got 100000"),
        (
            lambda: TileConfig(side=4096, tiles=1024),
            "tiles must have at most 67108864 pixels in a step, got 17179869184",
        ),
        (lambda: TileConfig(free_scales=(2.0, 1.0)), "free_scales must be the smallest and the largest scale"),
        (lambda: TileConfig(free_scales=(1.0,)), r"free_scales must have 2 entries, got 1: \(1.0,\)"),  # type: ignore[arg-type]
        (lambda: SearchConfig(scales=(16.0,) * 65), "scales must have 1 to 64 entries, got 65"),
        (lambda: SearchConfig(scales=(1, 0.5, 1.0)), r"scales must be entries that differ, got \(1, 0.5, 1.0\)"),
        (lambda: TrainConfig((Path("a"),), Path("b"), milestones=(5, 2)), "milestones must rise"),
        (lambda: TrainConfig((Path("a"),), Path("b"), skip_bad=1), "skip_bad must be of type bool, got 1"),  # type: ignore[arg-type]
        (lambda: TrainConfig((Path("a"),), Path("b"), model="resnet"), "model must be of type ModelConfig"),  # type: ignore[arg-type]
    ],
)
def test_settings_that_do_not_fit_together(make: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make()


def test_values_take_the_fields_own_type() -> None:
    config = TrainConfig("a", Path("b"), lr="1e-3", milestones=[3, 5], factors=[1, 2], clip=5)  # type: ignore[arg-type]
    assert config.dataset == (Path("a"),) and config.lr == 1e-3 and config.milestones == (3, 5)
    assert config.factors == (1.0, 2.0) and type(config.clip) is float
    assert {type(getattr(config, f.name)) for f in fields(config) if f.name in ("steps", "seed")} == {int}


@pytest.mark.parametrize("text", ["1000", "1e3", "1E3", "10e2"])
def test_whole_numbers_may_be_written_with_an_exponent(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(f"dataset: a\nout: b\nsteps: {text}\n")
    config = from_plain(TrainConfig, read_yaml(tmp_path / "a.yaml"), "a.yaml")
    assert config.steps == 1000 and type(config.steps) is int


@pytest.mark.parametrize("value", ["1e-3", 10.5, "1e400", "nan"])
def test_other_numbers_are_no_whole_ones(value: object) -> None:
    with pytest.raises(DataError, match="steps must be a whole number from 1"):
        TrainConfig((Path("a"),), Path("b"), steps=value)  # type: ignore[arg-type]

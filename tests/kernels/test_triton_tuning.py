"""The tables of configurations of the Triton kernels: what they hold, and who takes what from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sharpmask_kernels.backends.triton import tuning
from sharpmask_kernels.backends.triton.tuning import Config, Shape

KERNEL = "conv3x3.forward"


def test_the_tables_that_are_shipped() -> None:
    assert {"sm_80", "sm_90"} <= tuning.tables().keys()
    for table in tuning.tables().values():
        assert {kernel for kernel, _ in table} == tuning.UNTUNED.keys()
        for (_, shape), config in table.items():
            assert shape.bits in (16, 32)
            for number in (*shape[1:], config.pixels, config.warps):
                assert number > 0 and number & (number - 1) == 0
            assert 32 <= config.pixels <= 256 and config.warps <= 8 and 1 <= config.stages <= 5


def test_every_entry_that_the_ops_ask_for_is_there() -> None:
    """Of the paper's model and of a U-Net, in 16 and 32 bits: none takes that of another class."""
    pytest.importorskip("triton")
    from tools.aot import triton as aot

    asked = aot.entries()
    assert {kernel for kernel, _ in asked} == tuning.UNTUNED.keys() and len(asked) > 30
    for name, table in tuning.tables().items():
        assert set(asked) <= table.keys(), name


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("sm_90", ["sm_80", "sm_90"], "sm_90"),
        ("sm_89", ["sm_80", "sm_90"], "sm_80"),
        ("sm_120", ["sm_80", "sm_90", "gfx942"], "sm_90"),
        ("sm_75", ["sm_80", "sm_90"], "sm_80"),
        ("sm_90", ["gfx942"], None),
        ("gfx942", ["gfx942", "sm_90"], "gfx942"),
        ("gfx950", ["gfx942", "sm_90"], None),
        ("sm_90", [], None),
    ],
)
def test_a_gpu_without_a_table_takes_the_nearest(name: str, known: list[str], expected: str | None) -> None:
    assert tuning.nearest(name, {key: {} for key in known}) == expected


def test_a_class_without_an_entry_takes_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many, other = Config(64, 4, 2), Config(128, 4, 2), Config(256, 8, 2)
    table = {(KERNEL, Shape(16, 8, 8)): few, (KERNEL, Shape(16, 256, 64)): many, (KERNEL, Shape(32, 64, 64)): other}
    monkeypatch.setattr(tuning, "tables", lambda: {"sm_90": table})
    assert tuning.look_up(KERNEL, Shape(16, 256, 64), "sm_90") == many
    assert tuning.look_up(KERNEL, Shape(16, 16, 4), "sm_100") == few
    assert tuning.look_up(KERNEL, Shape(16, 64, 64), "sm_90") == many  # of the same number of bits
    assert tuning.look_up(KERNEL, Shape(16, 64, 64), "gfx942") == tuning.UNTUNED[KERNEL]
    assert tuning.look_up(KERNEL, Shape(16, 64, 64), None) == tuning.UNTUNED[KERNEL]
    assert tuning.look_up("upsample.forward", Shape(16, 64, 64), "sm_90") == tuning.UNTUNED["upsample.forward"]


def test_shapes_of_a_class() -> None:
    assert Shape.of(torch.bfloat16, 33, 9) == Shape.of(torch.float16, 64, 16) == Shape(16, 64, 16)
    assert Shape.of(torch.float32, 1, 1) == Shape(32, 1, 1)


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    table = {(KERNEL, Shape(16, 8, 8)): Config(64, 4, 2), ("upsample.forward", Shape(32, 4, 2)): Config(256, 8, 3)}
    path = tmp_path / "sm_90.json"
    path.write_text(tuning.text(table, 'measured on a "GPU"'))
    assert tuning.read(path) == table


def test_configurations_can_be_forced() -> None:
    maps, forced = torch.empty(1, 5, 2, 2), Config(256, 8, 4)
    usual = tuning.chosen(KERNEL, maps, 5, 3)
    with tuning.force({(KERNEL, Shape(32, 8, 4)): forced}):
        assert tuning.chosen(KERNEL, maps, 5, 3) == {"PIXELS": 256, "num_warps": 8, "num_stages": 4}
        assert tuning.chosen(KERNEL, maps, 9, 3) == usual
        assert tuning.asked() == [(KERNEL, Shape(32, 8, 4)), (KERNEL, Shape(32, 16, 4))]
    assert tuning.chosen(KERNEL, maps, 5, 3) == usual

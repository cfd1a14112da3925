"""The ahead-of-time report: what it reads from machine code, and that its gates can fail."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("triton")

from tools.aot import machine_code, roofline
from tools.aot import triton as aot

ROOT = Path(__file__).parents[1]

GOOD = aot.Compiled(
    kernel="upsample.forward",
    case=("sm_90", 1, "fp16", "bilinear", "replicate"),
    config="128px 4w 2s",
    shared_limit=99 << 10,
    warps=4,
    registers=90,
    spills=0,
    shared=40_000,
    matrix=8,
    loads={128: 12},
    instructions=900,
    narrow=(),
    precision=None,
)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"spills": 3}, "3 spills"),
        ({"matrix": 0}, "no instructions of the matrix unit"),
        ({"shared": 110_000}, "110000 bytes of shared memory"),
        ({"narrow": ("a",)}, "a is loaded less than 64 bits at a time"),
        ({"precision": "products in xf32"}, "products in xf32"),
    ],
)
def test_each_gate_can_fail(change: dict[str, object], fault: str) -> None:
    assert GOOD.faults() == []
    assert dataclasses.replace(GOOD, **change).faults() == [fault]


@pytest.mark.parametrize(
    ("line", "bits"),
    [
        ("cp.async.ca.shared.global [ %r295 + 0 ], [ %rd13 + 0 ], 0x8, %r45;", 64),
        ("@%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];", 128),
        ("@%p1 ld.global.b16 { %rs1 }, [ %rd1 + 0 ];", 16),
        ("buffer_load_dwordx4 v[2:5], v17, s[56:59], 0 offen", 128),
        ("global_load_ushort v1, v2, s[4:5]", 16),
        ("st.global.v4.b32 [ %rd1 + 0 ], { %r1, %r2, %r3, %r4 };", None),
    ],
)
def test_how_wide_a_line_loads(line: str, bits: int | None) -> None:
    assert machine_code.load_bits(line) == bits


def code(width: int) -> Iterator[str]:
    """A load of every map of convolve, ``width`` bytes each."""
    for line in machine_code.map_loads("conv3x3.py"):
        yield f".loc 2 {line} 18 // conv3x3.py:{line}:18"
        yield f"cp.async.ca.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], {width:#x}, %r2;"


def test_loads_are_told_apart_by_their_lines() -> None:
    assert set(machine_code.map_loads("conv3x3.py").values()) == {"a", "b", "grad", "activation"}  # not the weights
    channels = {"A": 8, "B": 8, "OUT": 8, "SPLIT": 8}
    assert list(machine_code.narrow("\n".join(code(8)), channels, itemsize=2)) == []
    assert sorted(machine_code.narrow("\n".join(code(4)), channels, itemsize=2)) == ["a", "activation", "b", "grad"]
    assert list(machine_code.narrow("\n".join(code(4)), dict.fromkeys(channels, 2), itemsize=2)) == []  # whole pixels


def test_occupancy_is_what_registers_shared_memory_and_warps_allow() -> None:
    assert dataclasses.replace(GOOD, registers=128, shared=0).occupancy == 16
    assert dataclasses.replace(GOOD, registers=32, shared=0).occupancy == 64
    assert dataclasses.replace(GOOD, registers=32, shared=100 << 10).occupancy == 8


def test_merge_upsample_moves_little_more_than_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    assert roofline.faults() == []
    monkeypatch.setattr(roofline, "PIXELS", 64)  # two rows to a tile: as many are read around it
    assert roofline.faults()


def test_a_decoders_step_does_less_than_the_plain_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for work in roofline.decoder_works():
        assert work.flops <= work.plain_flops
        assert work.least <= work.moved
        assert work.least < work.plain
    monkeypatch.setattr(roofline, "WIDE", 16)  # so few outputs to a program that each map is read many times
    assert roofline.faults()


def test_pixels_that_tiles_read() -> None:
    """Counted one by one: tiles of 6 x 16 corners, activations around them, taps around those, inside the map."""
    side, total = 20, 0
    for top in range(0, side + 1, 6):
        for left in range(0, side + 1, 16):
            rows = {min(max(y, 0), side - 1) for y in range(top - 1, top + 6)}
            cols = {min(max(x, 0), side - 1) for x in range(left - 1, left + 16)}
            total += len(
                {
                    (y + i, x + j)
                    for y in rows
                    for x in cols
                    for i in (-1, 0, 1)
                    for j in (-1, 0, 1)
                    if 0 <= y + i < side and 0 <= x + j < side
                }
            )
    assert roofline.tiled_pixels(side) == total


@pytest.mark.slow
def test_the_kernels_pass_the_gates() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tools.aot", "--quick", "--jobs", "2"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    assert ", 0 faults" in done.stdout

"""The bench of all sizes: which sizes it takes, and what it prints."""

from __future__ import annotations

import pytest
import torch

from bench import sweep


def test_a_sweep_ends_in_the_worst_ratios(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        assert sweep.main(["--threads=1", "--rounds=1", "--megabytes=0.01"]) == 0
    finally:
        torch.set_num_threads(threads)
    machine, table, worst = capsys.readouterr().out.strip().split("\n\n")
    assert "table of routes" in machine
    rows = [line.split("  ") for line in table.splitlines()[1:]]
    assert {row[0] for row in rows} == set(sweep.OPS)
    assert {row[3] for row in rows} == {"forward", "training"}
    least = [min(float(row[i]) for row in rows) for i in range(-len(sweep.RATIOS), 0)]
    assert worst.splitlines()[1].split() == ["all", *map("{:.2f}".format, least)]


def test_every_two_values_meet() -> None:
    few, all_sizes = (sweep.selected(sweep.parse(arguments)) for arguments in ([], ["--full"]))
    assert len(few) < len(all_sizes) / 5 and set(few) <= set(all_sizes)
    assert {(p.channels, p.op) for p in few} == {(c, op) for c in sweep.CHANNELS for op in sweep.OPS}
    assert max(p.megabytes for p in all_sizes) <= 128

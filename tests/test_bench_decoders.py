"""The bench of whole models measures all contenders, times no wrong result, and fills the page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from bench import decoders, record
from sharpmask_kernels.backends.cpu import decoder

CONDITIONS = r"(?:baseline|avx2|avx512|neon), 1 threads"
RATIO = r"\d+\.\d\d ± \d+\.\d\d"
GIVEN = ["--small", "--rounds=1", "--threads=1", "--eager"]


@pytest.fixture(autouse=True)
def _threads() -> object:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_every_model_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page, history = tmp_path / "page.md", tmp_path / "history.csv"
    isas = ("baseline", "avx2", "avx512", "neon")
    page.write_text("\n".join(f"<!-- decoders:{isa} -->old<!-- /decoders:{isa} -->" for isa in isas))
    monkeypatch.setattr(decoders, "PAGE", page)
    assert decoders.main([*GIVEN, "--docs", f"--record={history}"]) == 0
    told, table = capsys.readouterr().out.split("\n\n")[1:3]
    assert re.search(r"segmentation-models-pytorch [\d.]+, monai [\d.]+; 1 rounds\.$", told)
    head, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if "---" not in line]
    assert re.fullmatch(CONDITIONS, head[0]) and head[1:] == decoders.HEADER
    assert [row[0] for row in rows] == [case.name for case in decoders.cases(small=True)]
    assert [row[1] for row in rows] == ["5 of 5"] * 3 + ["7 of 9", "4 of 4", "5 of 5"]
    for row in rows:
        assert re.fullmatch(r"\d+\.\d\d ms \(fused(-nhwc)?\)", row[2])
        assert all(re.fullmatch(RATIO, cell) for cell in row[3:5]) and row[5:7] == ["-", "-"]
        share = re.fullmatch(r"\d+\.\d of \d+\.\d MB \((\d\.\d\d)\)", row[7])
        assert share and float(share[1]) < 1
    assert told.strip() in page.read_text() and table.strip() in page.read_text()
    found = record.read(history)
    assert [row.peer for row in found] == ["eager", "eager-nhwc"] * len(rows)
    assert {row.mode for row in found} == {"forward", "training-frozen"} and {row.op for row in found} == {"fuse"}


def test_a_compiled_model_is_compared_with_a_compiled_one() -> None:
    assert decoders.CONTENDERS["fused-compile-nhwc"] == (True, True, True)
    times = {name: torch.tensor([1.0 + i, 2.0 + i]).numpy() for i, name in enumerate(decoders.CONTENDERS)}
    found = decoders.Measured(decoders.cases(small=True)[0], times, "5 of 5", (1, 2))
    assert found.fastest == "fused"
    assert found.cells()[2:] == [
        "3500.00 ms (fused)",
        "0.71 ± 0.02",
        "0.42 ± 0.04",
        "1.58 ± 0.04",
        "0.85 ± 0.01",
        "0.0 of 0.0 MB (0.50)",
    ]


def test_wrong_results_are_not_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    right = decoder.upsample_merge
    monkeypatch.setattr(decoder, "upsample_merge", lambda *given: right(*given).mul_(1.001))
    monkeypatch.setattr(decoders, "interleaved", None)
    assert decoders.main([*GIVEN, "--model=depth decoder"]) == 1
    assert "fused differs from plain PyTorch on depth decoder 64x96, decoder, so" in capsys.readouterr().err

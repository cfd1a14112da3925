"""``sharpmask eval``: what is measured of which results, and what is written when something fails on the way."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sharpmask.cli import main
from sharpmask.evaluation import Recall, recall_table
from sharpmask.search import ProposalGenerator

Capture = pytest.CaptureFixture[str]


def run(*arguments: object) -> int:
    return main([str(a) for a in arguments])


@pytest.fixture(scope="module")
def entries(synth: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The objects of the folder as results: perfect proposals."""
    document = json.loads((synth / "instances.json").read_text())
    return [
        {
            "image_id": a["image_id"],
            "category_id": 1,
            "score": 1.0,
            "segmentation": a["segmentation"],
            "bbox": a["bbox"],
        }
        for a in document["annotations"]
    ]


@pytest.fixture
def measure(synth: Path, tmp_path: Path) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """What ``eval`` writes of some results."""

    def measured(results: list[dict[str, Any]]) -> dict[str, Any]:
        (tmp_path / "mine.json").write_text(json.dumps(results))
        assert run("eval", "--dataset", synth, "--results", tmp_path / "mine.json", "--out", tmp_path / "out") == 0
        return dict(json.loads((tmp_path / "out" / "recall.json").read_text()))

    return measured


def without(key: str, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in entry.items() if k != key} for entry in entries]


def test_results_of_masks_or_boxes_or_both(
    entries: list[dict[str, Any]], measure: Callable[[list[dict[str, Any]]], dict[str, Any]], capsys: Capture
) -> None:
    both = measure(entries)
    assert both["mine, masks"]["ar"]["100"]["all"] == both["mine, boxes"]["ar"]["100"]["all"] == 1
    assert "mask" not in capsys.readouterr().err

    boxes = measure(without("segmentation", entries))
    assert set(boxes) == {"mine, boxes"} and boxes["mine, boxes"] == both["mine, boxes"]
    captured = capsys.readouterr()
    assert f"mine: {len(entries)} of {len(entries)} results have no mask" in captured.err
    assert "recall of boxes" in captured.out and "recall of masks" not in captured.out

    assert measure(without("bbox", entries)) == both
    assert "mask" not in capsys.readouterr().err

    mixed = measure(without("segmentation", entries[:2]) + entries[2:])
    assert mixed["mine, boxes"] == both["mine, boxes"]
    assert 0 < mixed["mine, masks"]["ar"]["100"]["all"] < 1
    assert f"2 of {len(entries)} results have no mask, so masks are measured of the others" in capsys.readouterr().err

    nothing = measure([])
    assert nothing["mine, masks"]["ar"]["100"]["all"] == nothing["mine, boxes"]["ar"]["100"]["all"] == 0


def test_figures_that_need_more_proposals_are_marked(
    synth: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    base = ("eval", "--dataset", synth, "--checkpoint", tiny_checkpoint, "--out", tmp_path, "--top-n", 10)
    assert run(*base) == 0
    report = json.loads((tmp_path / "recall.json").read_text())["refined, masks"]
    assert report["most"] == 10 and report["ar"]["10"] == report["ar"]["1000"]
    out = capsys.readouterr().out
    assert out.count("~ refined, masks: no image has more than 10 proposals") == 1
    row = next(line for line in out.splitlines() if "refined, masks" in line)
    assert [cell.strip().endswith("~") for cell in row.split("│")[2:-1]] == [False, *[True] * 6]


def test_no_mark_where_there_are_enough() -> None:
    sizes = dict.fromkeys(("all", "small", "medium", "large"), 0.5)
    full, short = (Recall("segm", {10: sizes, 1000: sizes}, sizes, [], most=most) for most in (1000, 999))
    assert "~" not in str(recall_table({"x": full}, paper=True).caption)
    table = recall_table({"x": full, "y": short}, paper=True)
    assert str(table.caption).splitlines()[0] == "~ y: no image has more than 999 proposals"
    assert list(table.columns[2].cells)[:2] == ["50.0", "50.0~"]


def test_a_table_is_never_cut(monkeypatch: pytest.MonkeyPatch, capsys: Capture, measure: Any, entries: Any) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    measure(entries)
    out = capsys.readouterr().out
    assert "AR@1000" in out and "DeepMask (ResNet)*" in out and "…" not in out
    assert len({len(line) for line in out.splitlines() if line.startswith(("│", "┃", "├", "└"))}) <= 2, (
        "masks and boxes"
    )


@pytest.mark.parametrize("kept", ["crowds", "nothing"])
def test_nothing_to_measure(synth: Path, tmp_path: Path, capsys: Capture, kept: str) -> None:
    document = json.loads((synth / "instances.json").read_text())
    objects = [annotation | {"iscrowd": 1} for annotation in document["annotations"]] if kept == "crowds" else []
    (tmp_path / "other.json").write_text(json.dumps(document | {"annotations": objects}))
    (tmp_path / "mine.json").write_text("[]")
    base = ("eval", "--dataset", synth, "--annotations", tmp_path / "other.json", "--results", tmp_path / "mine.json")
    assert run(*base, "--out", tmp_path / "out") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith(f"must hold an object to measure, got 6 photos and {len(objects)} crowds")
    assert not (tmp_path / "out" / "recall.json").exists()


def test_patches_are_measured_before_the_search(
    synth: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    document = json.loads((synth / "instances.json").read_text())
    for annotation in document["annotations"]:
        annotation["iscrowd"] = 1
    (tmp_path / "crowds.json").write_text(json.dumps(document))

    def generate(*_: object) -> None:
        raise AssertionError("the search has begun")

    monkeypatch.setattr(ProposalGenerator, "generate", generate)
    base = ("eval", "--dataset", synth, "--annotations", tmp_path / "crowds.json", "--checkpoint", tiny_checkpoint)
    assert run(*base, "--patches", 8, "--out", tmp_path / "out") == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("sharpmask: ") and "crowds.json" in lines[-1]


def test_a_photo_that_breaks_between_two_searches_is_left_out_of_both(
    synth: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(synth, copy)
    real, calls = ProposalGenerator.generate, 0

    def generate(self: ProposalGenerator, image: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 6:
            (copy / "images" / "000002.png").write_bytes(b"broken")
        return real(self, image)

    monkeypatch.setattr(ProposalGenerator, "generate", generate)
    base = ("eval", "--dataset", copy, "--checkpoint", tiny_checkpoint, "--out", tmp_path / "out", "--top-n", 3)
    assert run(*base, "--coarse", "--skip-bad") == 0
    assert calls == 11 and "left out 1 broken entries, first: " in capsys.readouterr().err
    assert len(json.loads((tmp_path / "out" / "recall.json").read_text())) == 4


def test_options_that_need_a_model(synth: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "x.json").write_text("[]")
    base = ("eval", "--dataset", synth, "--results", tmp_path / "x.json", "--out", tmp_path / "out")
    for option in (("--patches", 5), ("--coarse",), ("--resume",)):
        assert run(*base, *option) == 2
        assert "it needs a model, so leave out" in capsys.readouterr().err


@pytest.mark.parametrize("failing", ["show", "say", "plot_recall"])
def test_the_figures_are_written_before_they_are_printed(
    failing: str, synth: Path, entries: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("printing fails")

    (tmp_path / "x.json").write_text(json.dumps(entries))
    monkeypatch.setattr(f"sharpmask.cli.evaluate.{failing}", fail)
    assert run("eval", "--dataset", synth, "--results", tmp_path / "x.json", "--out", tmp_path / "out") == 2
    assert json.loads((tmp_path / "out" / "recall.json").read_text())["x, masks"]["ar"]["100"]["all"] == 1


def test_a_terminal_without_letters_and_a_closed_pipe_lose_nothing(
    synth: Path, entries: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "naïve.json").write_text(json.dumps(entries))
    command = [sys.executable, "-m", "sharpmask.cli", "eval", "--dataset", str(synth), "--results", "naïve.json"]
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, "")
    report = json.loads((tmp_path / "evaluation" / "recall.json").read_text())
    assert report["naïve, masks"]["ar"]["100"]["all"] == 1

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
from sharpmask.cli.options import GROUPINGS
from sharpmask.data.synthetic import synthesize
from sharpmask.evaluation import Recall, breakdown, recall_table
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
    ar, *others = (cell.strip() for cell in row.split("│")[2:-1])
    assert not ar.endswith("~") and all(cell == "-" or cell.endswith("~") for cell in others) and len(others) == 6


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
    assert calls == 11 and "left out 1 broken entry, first: " in capsys.readouterr().err
    assert len(json.loads((tmp_path / "out" / "recall.json").read_text())) == 4


def test_options_that_need_a_model(synth: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "x.json").write_text("[]")
    base = ("eval", "--dataset", synth, "--results", tmp_path / "x.json", "--out", tmp_path / "out")
    for option in (("--patches", 5), ("--coarse",), ("--resume",)):
        assert run(*base, *option) == 2
        assert "it needs a model, so leave out" in capsys.readouterr().err


FAILING = {"show": "measures", "say": "evaluate", "plot_recall": "measures"}


@pytest.mark.parametrize("failing", FAILING)
def test_the_figures_are_written_before_they_are_printed(
    failing: str, synth: Path, entries: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("printing fails")

    (tmp_path / "x.json").write_text(json.dumps(entries))
    monkeypatch.setattr(f"sharpmask.cli.{FAILING[failing]}.{failing}", fail)
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


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of twelve pictures, of two sources, so that there are intervals."""
    folder = synthesize(
        tmp_path_factory.mktemp("many") / "data", images=12, seed=3, size=(64, 96), textures="generated"
    )
    document = json.loads((folder / "instances.json").read_text())
    for number, image in enumerate(document["images"]):
        image["source"] = f"{'flickr' if number % 3 else 'museum'}@2:{number}"
    (folder / "instances.json").write_text(json.dumps(document))
    return folder


def results_of(folder: Path, part: slice) -> list[dict[str, Any]]:
    """Perfect proposals of some objects of a folder."""
    annotations = json.loads((folder / "instances.json").read_text())["annotations"][part]
    keys = ("image_id", "category_id", "segmentation")
    return [{key: annotation[key] for key in keys} | {"score": 1.0} for annotation in annotations]


def test_groups_intervals_differences_and_misses(many: Path, tmp_path: Path, capsys: Capture) -> None:
    for name, part in (("mine", slice(None)), ("old/mine", slice(None, None, 2))):
        path = tmp_path / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(results_of(many, part)))
    base = ("eval", "--dataset", many, "--results", tmp_path / "old/mine.json", "--out", tmp_path / "out")
    assert run(*base, "--by", "size,category, source", "--against", tmp_path / "mine.json", "--gallery", 3) == 0
    report = json.loads((tmp_path / "out" / "recall.json").read_text())
    rows = ("mine, masks", "mine, boxes", *(f"{tmp_path.name}/mine, {kind}" for kind in ("masks", "boxes")))
    assert set(report) == {*rows, "differences"}
    mine, best = report["mine, masks"], report[f"{tmp_path.name}/mine, masks"]
    assert (mine["photos"], mine["objects"]) == (12, best["objects"])
    low, high = mine["ar_interval"]["100"]
    assert 0 < low < mine["ar"]["100"]["all"] < high < 1 and best["ar_interval"]["100"] == [1, 1]
    assert mine["by"]["size"]["small"]["ar"]["100"] == mine["ar"]["100"]["small"]
    assert {name: found["photos"] for name, found in mine["by"]["source"].items()} == {"flickr": 8, "museum": 4}
    assert mine["by"]["source"]["museum"]["few"] and mine["by"]["source"]["museum"]["ar_interval"] is None
    (found, _) = report["differences"].values()
    assert found["ar"]["100"] == pytest.approx(mine["ar"]["100"]["all"] - 1)
    assert found["ar_interval"]["100"] == pytest.approx([low - 1, high - 1])
    out = capsys.readouterr().out
    for text in ("95 % interval", "by source: mine, masks", "museum ?", f"{mine['objects']} objects in 12 photos", "*"):
        assert text in out
    assert out.splitlines()[-1].endswith("recall.json, gallery.html")
    page = (tmp_path / "out" / "gallery.html").read_text()
    assert page.count("<figure>") == 3 and "Objects missed by most (mine, masks)" in page
    assert run(*base) == 0
    assert not (tmp_path / "out" / "gallery.html").exists(), "of an earlier measurement"


def test_results_of_some_photos_only(many: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "x.json").write_text(json.dumps([e for e in results_of(many, slice(None)) if e["image_id"] < 4]))
    assert run("eval", "--dataset", many, "--results", tmp_path / "x.json", "--out", tmp_path / "out") == 0
    assert "x: no results for 9 of 12 photos: their objects count as missed" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "recall.json").read_text())["x, masks"]["ar_interval"] is None
    some = [entry for entry in results_of(many, slice(None)) if entry["image_id"] > 1]
    for name, entries in (("x", results_of(many, slice(None))), ("some", some), ("none", [])):
        (tmp_path / f"{name}.json").write_text(json.dumps(entries))
    for other in ("some", "none"):
        base = ("eval", "--dataset", many, "--results", tmp_path / "x.json", "--out", tmp_path / "out")
        assert run(*base, "--against", tmp_path / f"{other}.json") == 0
        report = json.loads((tmp_path / "out" / "recall.json").read_text())
        assert (report[f"{other}, masks"]["auc_interval"] is None) == (other == "none")
        assert report["x, masks"]["ar_interval"]["100"] == [1, 1]
        assert {found["auc_interval"] for found in report["differences"].values()} == {None}
        said = capsys.readouterr()
        assert f"{other}: no results for" in said.err and "excludes 0" not in said.out


def test_options_of_groups_and_intervals(many: Path, synth: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "x.json").write_text(json.dumps(results_of(many, slice(None))))
    base = ("eval", "--results", tmp_path / "x.json", "--out", tmp_path / "out", "--dataset")
    assert run(*base, many, "--by", "sizes") == 2
    assert "by must be some of size, category, source, separated by commas, got 'sizes'" in capsys.readouterr().err
    assert run(*base, many, "--against", tmp_path / "none.json") == 2
    assert "against: no file" in capsys.readouterr().err
    (tmp_path / "y.json").write_text("[]")
    assert run("eval", "--results", tmp_path / "y.json", "--dataset", synth, "--by", "source", "--out", tmp_path) == 2
    assert "says its 'source'" in capsys.readouterr().err
    assert run(*base, many, "--bootstrap", 99) == 2
    assert "bootstrap must be 0 or at least 100, got 99" in capsys.readouterr().err
    assert run(*base, many, "--bootstrap", 0) == 0
    assert json.loads((tmp_path / "out" / "recall.json").read_text())["x, masks"]["ar_interval"] is None
    assert "interval" not in capsys.readouterr().out


def test_the_groupings_are_those_that_there_are() -> None:
    assert GROUPINGS == breakdown.GROUPINGS

"""``python -m bench.photo`` checks before it times, takes turns, and writes what it measured."""

from __future__ import annotations

import json
import re
import subprocess
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from pycocotools import mask as coco

from bench import pages, record
from bench.measure import WrongResult
from bench.photo import __main__ as photo
from bench.photo import before, contenders, many, outcome, report, sam, searches, tables, turns
from bench.photo.process import Failed, Process
from bench.photo.results import Many, Measured, Results

ROOT = Path(__file__).parents[1]


def cells(markdown: str) -> list[list[list[str]]]:
    """The tables of a text."""
    found = re.findall(r"(?:^\|.*\n)+", markdown + "\n", re.MULTILINE)
    return [[[c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines()] for table in found]


def test_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """This checkout and two peers on a tiny photo, then many photos: results are right, printed and kept."""
    names = ["eager", "ours", "onnxruntime"]
    saved, history, picture = (tmp_path / name for name in ("runs.json", "photo.csv", "photo.png"))
    given = ["--small", "--before=none", "--markdown", "--many=2", "--many-rounds=1"]
    given += [f"--contender={name}" for name in names]
    assert photo.main([*given, f"--save={saved}", f"--record={history}"]) == 0
    out = capsys.readouterr().out
    assert {"CPU", "instruction set", "torch", "commit", "date"} <= set(re.findall(r"(?m)^([\w ]+): ", out))
    one, ratios, stages, photos = cells(out)
    assert {"trunk and heads", "refine", "encode", "suppress"} < {row[0] for row in stages}
    assert one[0] == ["", "N = 5", "N = 10", "times ours, N = 10", "memory, N = 10"]
    assert [row[0] for row in one[2:]] == names
    assert all(re.fullmatch(r"\d\.\d{3} s", cell) for row in one[2:] for cell in row[1:3])
    assert one[3][3] == "" and re.fullmatch(r"\d+\.\d\d ± 0\.00", one[2][3])
    assert any("best peer" in row[0] for row in ratios)
    assert [row[0] for row in photos[2:]] == ["a loop over generate", "sharpmask propose"]

    rows = record.read(history)
    assert {(row.op, row.shape, row.threads, row.backend, row.peer) for row in rows} == {
        ("photo", f"shipped-{count}-96x128", "1", "ours", peer)
        for count in (5, 10)
        for peer in ("eager", "onnxruntime")
    }
    assert photo.main([f"--load={saved}", "--markdown", f"--plot={picture}"]) == 0
    assert cells(capsys.readouterr().out) == [one, ratios, stages, photos]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_contender_that_cannot_run_says_why(tmp_path: Path) -> None:
    task = {"threads": 1, "size": (96, 128), "model": "sharpmask none", "counts": [5], "checkout": None}
    with pytest.raises(Failed, match="trunk must be one of"):
        Process(task | {"search": {"kind": "generator"}}, tmp_path / "log")


def an_outcome() -> outcome.Outcome:
    random = np.random.default_rng(0)
    windows = np.stack([np.arange(20) // 10, np.arange(20), np.arange(20)], 1)
    masks = np.zeros((40, 40, 20), dtype=np.uint8, order="F")
    for i in range(20):
        masks[i : i + 20, i : i + 12, i] = 1
    scores = np.linspace(3, -3, 20, dtype=np.float32)
    return outcome.Outcome(windows, scores, random.normal(size=(20, 8, 8)), coco.encode(masks), scores)


def moved(found: outcome.Outcome) -> outcome.Outcome:
    return found._replace(windows=found.windows + np.array([0, 1, 0]))


def scored(found: outcome.Outcome) -> outcome.Outcome:
    windows, scores = found.windows.copy(), found.window_scores.copy()
    windows[7] = 9, 9, 9
    return found._replace(windows=windows, window_scores=scores)


def louder(found: outcome.Outcome) -> outcome.Outcome:
    return found._replace(logits=found.logits * 1.01)


def nan(found: outcome.Outcome) -> outcome.Outcome:
    return found._replace(logits=found.logits * np.nan)


def shifted(found: outcome.Outcome) -> outcome.Outcome:
    return found._replace(rles=coco.encode(np.asfortranarray(np.roll(coco.decode(found.rles), 1, 0))))


def none(found: outcome.Outcome) -> outcome.Outcome:
    return found._replace(rles=[], scores=found.scores[:0])


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (moved, "0.0% of the windows are the same"),
        (scored, "a window that it alone has scores"),
        (louder, "logits off by 1.0e-02"),
        (nan, "logits off by nan"),
        (shifted, "masks have a mean best IoU of 0.9"),
        (none, "masks have a mean best IoU of 0.0000"),
    ],
)
def test_wrong_results(spoil: Callable[[outcome.Outcome], outcome.Outcome], problem: str, tmp_path: Path) -> None:
    expected = an_outcome()
    outcome.save(spoil(expected), tmp_path / "x.npz")
    with pytest.raises(WrongResult, match=f"peer differs from plain PyTorch, so it is not timed: {problem}"):
        outcome.check("peer", outcome.load(tmp_path / "x.npz"), expected, outcome.ROUNDED)


def test_equal_scores_may_be_ranked_otherwise(tmp_path: Path) -> None:
    """The last window is another one, with the same score; and the order of all is another."""
    expected = an_outcome()
    windows = expected.windows.copy()
    windows[-1] = 9, 9, 9
    order = np.arange(20)[::-1]
    found = expected._replace(
        windows=windows[order], window_scores=expected.window_scores[order], logits=expected.logits[order]
    )
    outcome.check("peer", found, expected, outcome.ROUNDED)


class FakeProcess:
    """Answers at once, and notes who is asked what."""

    asked: ClassVar[list[tuple[str, str, int]]] = []
    wrong: str | None = None

    def __init__(self, task: dict[str, Any], log: Path) -> None:
        self.name = task["search"]["kind"]
        if self.name == "compiled":
            raise Failed("no compiler")

    def ask(self, what: str, count: int = 0, path: str = "") -> dict[str, Any]:
        self.asked.append((self.name, what, count))
        if what == "look":
            found = an_outcome()
            outcome.save(louder(found) if self.name == self.wrong else found, Path(path))
        taken = {"eager": 1.0, "openvino": 0.1}.get(self.name, 0.5)
        return {"seconds": taken, "stages": {"refine": 0.1}, "peak": 1000 + 500 * (what == "peak")}

    def __enter__(self) -> FakeProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.asked.append((self.name, "close", 0))


@pytest.fixture
def ring(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> turns.Ring:
    monkeypatch.setattr(turns, "Process", FakeProcess)
    monkeypatch.setattr(FakeProcess, "asked", [])
    options = Namespace(before="none", size=(96, 128), contender=[])
    return turns.Ring(options, Results({}, (96, 128)), "shipped", 2, tmp_path)


def chosen(*names: str) -> list[contenders.Contender]:
    return [contenders.CONTENDERS[name] for name in names]


def test_all_are_ready_and_checked_before_turns_begin(ring: turns.Ring) -> None:
    ring.measure(chosen("eager", "ours", "before", "compile"), [5, 10], 2)
    both = "eager", "generator"
    ready = [(name, "look", count) for name in both for count in (5, 10)]
    turn = [(name, "time", count) for count in (5, 10) for name in both]
    before_and_after = [[(name, what, 0) for name in both] for what in ("forget", "peak")]
    closed = [("generator", "close", 0), ("eager", "close", 0)]
    assert FakeProcess.asked == [*ready, *before_and_after[0], *turn, *turn, *before_and_after[1], *closed]
    assert [(m.name, m.count, m.seconds, m.peak) for m in ring.results.measured] == [
        (name, count, [time] * 2, peak)
        for name, time in (("eager", 1.0), ("ours", 0.5))
        for count, peak in ((5, 1000), (10, 1500))
    ]
    assert ring.results.notes == [
        "before left out (shipped, 2 threads): not asked for",
        "compile left out (shipped, 2 threads): no compiler",
    ]


def test_a_wrong_result_stops_the_run(ring: turns.Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeProcess, "wrong", "generator")
    with pytest.raises(WrongResult, match=r"ours \(shipped, 5 windows\) differs from plain PyTorch"):
        ring.measure(chosen("eager", "ours"), [5], 1)
    assert not [what for _, what, _ in FakeProcess.asked if what == "time"]
    assert ("eager", "close", 0) in FakeProcess.asked


def test_a_peer_far_behind_is_timed_once(ring: turns.Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "exported", lambda: Path("model.onnx"))
    ring.measure(chosen("eager", "ours", "openvino"), [5], 3)
    assert [m.seconds for m in ring.results.measured] == [[1.0], [0.5] * 3, [0.1] * 3]
    eager, ours, _ = ring.results.measured
    assert list(tables.ratios(eager, ours)) == [2.0]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of one commit, in the place of this one."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "setup.py").write_text("print('compiled')")
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.com"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(root), *command], check=True)
    monkeypatch.setattr(before, "ROOT", root)
    return root


def test_an_earlier_commit_is_compiled_once(repository: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    folder = before.checkout("HEAD", cache)
    assert (folder / "setup.py").read_text() == "print('compiled')" and list(cache.iterdir()) == [folder]
    (folder / "mark").touch()
    assert (before.checkout("HEAD", cache) / "mark").exists()


def test_an_earlier_commit_that_cannot_be_had(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(Failed, match="no commit 1234567; in a shallow clone, git fetch --unshallow gets it"):
        before.checkout("1234567", tmp_path / "cache")
    (repository / "setup.py").write_text("raise SystemExit('no compiler here')")
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.com"]
    subprocess.run(["git", "-C", str(repository), *identity, "commit", "-qam", "second"], check=True)
    with pytest.raises(Failed, match="kernels do not compile: no compiler here"):
        before.checkout("HEAD", tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def some_results() -> Results:
    def measured(name: str, group: str, count: int, *seconds: float, peak: int) -> Measured:
        return Measured("shipped", 2, count, name, group, list(seconds), peak)

    own = [
        measured("eager", "peer", 100, 1.6, 1.8, peak=9),
        measured("ours", "ours", 100, 0.5, 0.5, peak=9),
        measured("eager", "peer", 1000, 3.0, 3.0, peak=9),
        measured("openvino", "peer", 1000, 1.0, 2.0, peak=9),
        measured("before", "before", 1000, 2.0, 4.0, peak=800),
        measured("ours", "ours", 1000, 1.0, 1.0, peak=300),
        measured("ours, openvino", "ours", 1000, 0.5, 0.5, peak=400),
        measured("ours, openvino int8", "ours", 1000, 0.25, 0.25, peak=400),
        Measured("SAM", 2, 256, "SAM ViT-B, 16x16 points", "other", [60.0], 5_000_000_000),
    ]
    ways = [Many("a loop over generate", 100, [1.0, 2.0]), Many("sharpmask propose", 100, [1.5, 3.0])]
    head = {"CPU": "Some CPU", "instruction set": "avx2", "torch": "2.14", "commit": "abc"}
    return Results(head, (480, 640), ["tensorrt left out: no GPU"], own, ways)


def test_ratios() -> None:
    title = "shipped, N = 1000"
    assert tables.summary(some_results())[1:] == [
        [f"{title}: times as fast as the commit before", "3.00 ± 0.50", "6.00 ± 1.00"],
        [f"{title}: times as fast as the best peer (openvino)", "1.50 ± 0.25", "3.00 ± 0.50"],
        ["shipped: time of N = 100 as a share of N = 1000", "0.50 ± 0.00", "-"],
        [f"{title}: int8, times as fast as fp32", "-", "2.00 ± 0.00"],
        [f"{title}: peak memory as a share of the commit before's", "0.38", "0.50"],
        ["100 photos: sharpmask propose, photos a second over a plain loop's", "1.50 ± 0.00", "-"],
    ]


def test_the_documents_are_filled(tmp_path: Path) -> None:
    for page in ("docs/photo-speed.md", "README.md", "MODEL_CARD.md"):
        (tmp_path / page).parent.mkdir(exist_ok=True)
        (tmp_path / page).write_text((ROOT / page).read_text())
    (tmp_path / "docs/images").mkdir()
    results = some_results()
    for _ in range(2):
        report.write(results, tmp_path)
    page, readme = ((tmp_path / name).read_text() for name in ("docs/photo-speed.md", "README.md"))
    assert cells(report.text(results)) == cells(page)[-len(tables.sections(results)) :]
    assert page.count("tensorrt left out") == page.count("images/photo_speed.png") == 1
    assert (
        "\nThe best 100 masks of a photo of 480x640 take 0.50 s, the best 1000 1.00 s, with at most 0 MB beyond the "
        "loaded model, on 2 cores of Some CPU with avx2, torch 2.14 (commit abc; [how](docs/photo-speed.md)).\n"
        in readme
    )
    with pytest.raises(ValueError, match="must have <!-- photo:other -->"):
        pages.fill(tmp_path / "README.md", "photo:other", "")


def test_results_are_kept(tmp_path: Path) -> None:
    results = some_results()
    results.write(tmp_path / "runs.json")
    assert json.loads((tmp_path / "runs.json").read_text())["size"] == [480, 640]
    assert Results.read(tmp_path / "runs.json") == results
    file = str(tmp_path / "runs.json")
    assert photo.main(["--load", file, file, f"--save={file}"]) == 0
    both = Results.read(tmp_path / "runs.json")
    assert both.measured == 2 * results.measured and both.many == 2 * results.many


def test_the_same_photos_in_every_run(tmp_path: Path) -> None:
    folders = [many.vary(tmp_path / name, 3, (48, 64)) for name in "ab"]
    contents = [[path.read_bytes() for path in sorted(folder.iterdir())] for folder in folders]
    assert contents[0] == contents[1] and len(set(contents[0])) == 3


def test_sam_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "segment_anything", None)
    with pytest.raises(RuntimeError, match="not installed: pip install segment-anything"):
        sam.finder(np.zeros((4, 4, 3), dtype=np.uint8), side=16)


def test_random_models_do_not_drop_out() -> None:
    assert not any(module.training for module in searches.load("sharpmask resnet18").modules())


@pytest.mark.parametrize("option", ["--threads=0", "--counts=0", "--rounds=0"])
def test_numbers_below_one_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        photo.main([option])
    assert "invalid positive value: '0'" in capsys.readouterr().err


def test_results_that_are_not_there_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert photo.main([f"--load={tmp_path / 'missing.json'}"]) == 1
    assert capsys.readouterr().err.startswith("error: ")

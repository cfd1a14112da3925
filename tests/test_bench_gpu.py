"""``python -m bench.gpu``: a whole rehearsal, and that a run stops in time, loses nothing, and goes on where it was."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from bench import record
from bench.gpu import __main__ as gpu
from bench.gpu import clock, compiling, failures, measure, photo, prove, ready, run, sanitize, tune
from bench.gpu.report import Report
from bench.gpu.stages import STAGES
from bench.gpu.steps import NAMES, Plan, Result, Stage, Step, judged, no_tables
from bench.photo.outcome import Outcome
from bench.process import Failed
from bench.workloads import FULL
from sharpmask_kernels import registry
from sharpmask_kernels.backends.triton import tuning
from sharpmask_kernels.backends.triton.tuning import Config, Shape

ROOT = Path(__file__).parents[1]

MARKED = re.compile(r"^(pytestmark = |@)pytest\.mark\.gpu", re.MULTILINE)


def test_a_photo_on_which_other_windows_are_found_has_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("benchmark", "allow_tf32"):  # the bench changes them
        monkeypatch.setattr(torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))
    none, one = (
        Outcome(np.zeros((n, 3), np.int64), *(np.zeros(shape, np.float32) for shape in (n, (n, 4, 4))), [], np.zeros(n))
        for n in (0, 1)
    )
    found = iter([one, none, one])  # what is expected, and what each of the two finds
    monkeypatch.setattr(photo, "outcome_of", lambda *_: next(found))
    monkeypatch.setattr(photo.Answers, "generator", lambda *_: SimpleNamespace(precision="fp32"))
    monkeypatch.setattr(photo.Answers, "taken", lambda *_: {"seconds": 0.5, "stages": {}})
    answer = photo.Answers(tmp_path, rehearse=True).time("shipped", "fp32", "torch")
    told = "500.0 ms, 1.00 times as fast as PyTorch's ops; ours differ from fp32: 0.0% of the windows are the same"
    assert answer["status"] == "failed" and answer["said"].startswith(told)
    assert [row["who"] for row in answer["rows"]] == ["ours", "PyTorch's ops"]


def test_a_rehearsal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage, on the CPU. A second start has nothing left to do."""
    command = [sys.executable, "-m", "bench.gpu", "--rehearse", f"--out={tmp_path}"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "report.json").read_text())
    assert list(found["stages"]) == [stage.name for stage in STAGES]
    for stage in STAGES:
        names = [step.name for step in stage.steps(Plan(True, str(tmp_path)))]
        assert names and {step: found["stages"][stage.name][step]["status"] for step in names} == dict.fromkeys(
            names, "ok"
        )
    text = (tmp_path / "report.md").read_text()
    assert "nothing here was run on a GPU" in text
    for stage in STAGES:
        assert f"\n## {stage.name}: " in text
    counts = [row for step in found["stages"]["prove"].values() for row in step["rows"]]
    assert counts == [{"failed": 0}, {"passed": 5}]
    assert tuning.read(tmp_path / "tuning" / "interpreted.json").keys() == {("upsample.forward", Shape(32, 8, 4))}

    monkeypatch.setattr(run.Runner, "step", lambda *step: pytest.fail("it is finished"))
    assert gpu.main(["--rehearse", f"--out={tmp_path}"]) == 0


def stage(*steps: Step, share: float = 1, name: str = "stage", at_once: int = 1) -> Stage:
    return Stage(name, "a stage", share, lambda plan: list(steps), judged, no_tables, at_once)


def python(name: str, code: str, seconds: float = 10) -> Step:
    return Step(name, seconds, ("-c", code))


def results(stage: Stage, folder: Path, seconds: float = 60, **head: str) -> dict[str, Result]:
    """Of a run of one stage."""
    report = Report(folder, {"device": "a GPU", **head}, [stage])
    run.Runner(stage, Plan(False, str(folder)), run.Clock(time.monotonic() + seconds), report).run()
    return Report(folder, {"device": "a GPU", **head}, [stage]).results[stage.name]  # as a later run reads it


def test_every_outcome_is_kept(tmp_path: Path) -> None:
    start = time.monotonic()
    found = results(
        stage(
            python("right", "print('so it is')"),
            python("wrong", "print('a fault | here'); raise SystemExit(3)"),
            python("endless", "import time; print('begun', flush=True); time.sleep(60)", 3),
            Step("impossible", 1, obstacle="there is no sanitizer"),
        ),
        tmp_path,
    )
    assert {name: result.status for name, result in found.items()} == {
        "right": "ok", "wrong": "failed", "endless": "stopped", "impossible": "left out"
    }  # fmt: skip
    assert found["right"].said == "so it is" and found["wrong"].said == "a fault | here"
    # It was interrupted first, as by Ctrl-C, so that it could tell how far it came.
    assert found["endless"].output.startswith("begun\nTraceback")
    assert found["endless"].said == "it took more than 3 s; KeyboardInterrupt"
    assert found["impossible"].said == "there is no sanitizer"
    assert time.monotonic() - start < 20
    text = (tmp_path / "report.md").read_text()
    assert "1 ok, 1 failed, 1 stopped, 1 left out" in text
    assert "| wrong | failed |" in text and "a fault \\| here |" in text and "### endless: stopped" in text


def test_what_was_started_ends_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where Ctrl-C ends it: here when the first step is done, while the second runs."""
    monkeypatch.setattr(run, "say", lambda text: exec("raise KeyboardInterrupt"))
    steps = python("quick", "import time; time.sleep(1)"), python("endless", "import time; time.sleep(60)", 60)
    report, start = Report(tmp_path, {}, []), time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        runner = run.Runner(stage(*steps, at_once=2), Plan(False, ""), run.Clock(start + 99), report)
        runner.run()
    assert time.monotonic() - start < 30 and not runner.running
    assert report.results["stage"].keys() == {"quick"}  # the other was not at fault


def test_a_later_run_does_what_is_left(tmp_path: Path) -> None:
    counting = f"open({str(tmp_path / 'ran')!r}, 'a').write('%s ')"
    steps = [python("a", counting % "a"), python("b", (counting % "b") + "; raise SystemExit(1)")]
    late = python("c", "import time; time.sleep(60)", 99), python("d", counting % "d", 99)
    found = results(stage(*steps, *late), tmp_path, run.LEAST + 5)  # there is time to begin c, but not d
    assert (found["c"].status, found["d"].status) == ("left out", "left out")
    assert "the time was up: it took more than" in found["c"].said
    assert found["d"].said == "the time was up: it may take 99 s"
    late = python("c", counting % "c")
    assert (tmp_path / "ran").read_text() == "a b "
    assert results(stage(*steps, late), tmp_path)["c"].status == "ok"
    assert (tmp_path / "ran").read_text() == "a b c "
    results(stage(*steps), tmp_path, commit="another")
    assert (tmp_path / "ran").read_text() == "a b c a b "
    assert len(list(tmp_path.glob("report-*.json"))) == 1  # what the other commit gave is kept


def test_nothing_half_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = Report(tmp_path, {}, [])
    report.add("stage", "a", Result("ok"))
    before = (tmp_path / "report.json").read_text()
    monkeypatch.setattr(json, "dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report.add("stage", "b", Result("ok"))
    assert (tmp_path / "report.json").read_text() == before
    assert os.listdir(tmp_path) and not list(tmp_path.glob(".*"))


class Asked:
    """In the place of a stage's process: fails at one question, is too slow at another."""

    made = 0

    def __init__(self) -> None:
        type(self).made += 1

    def ask(self, patience: float, **question: Any) -> dict[str, Any]:
        if question["n"] == 1:
            raise Failed("an illegal memory access")
        if question["n"] == 2:
            raise TimeoutError("it took more than 5 s")
        return {"said": f"answer {question['n']}", "rows": [question]}

    def close(self) -> None:
        pass


def test_a_process_that_fails_gives_way_to_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.Runner, "start", lambda self, patience: Asked())
    monkeypatch.setattr(Asked, "made", 0)
    found = results(stage(*(Step(f"{n}", 5, question={"n": n}) for n in range(4))), tmp_path)
    assert [(r.status, r.said) for r in found.values()] == [
        ("ok", "answer 0"),
        ("failed", "an illegal memory access"),
        ("stopped", "it took more than 5 s"),
        ("ok", "answer 3"),
    ]
    assert Asked.made == 3 and list(found["3"].rows) == [{"n": 3}]


def test_stages_share_the_time() -> None:
    whole = run.Clock(time.monotonic() + 100)
    first, later = stage(share=1), stage(share=3)
    assert whole.share(first, [later]).left == pytest.approx(25, abs=1)
    assert whole.share(later, []).left == pytest.approx(100, abs=1)
    assert run.Clock(time.monotonic() - 5).share(first, []).left <= 0


def test_what_is_planned_for_a_gpu() -> None:
    """Nothing of this runs here: names are told apart, files and workloads are there."""
    assert tuple(each.name for each in STAGES) == NAMES
    for each in STAGES:
        names = [step.name for step in each.steps(Plan(False, "out"))]
        assert names and len(names) == len(set(names)), each.name
    contract = {path.stem for path in (ROOT / prove.CONTRACT).glob("test_*.py")}
    assert contract <= {step.name.split()[0] for step in prove.steps(Plan(False, "out"))}
    assert set(prove.LONG) <= contract
    marked = [path for path in (ROOT / "tests").rglob("test_*.py") if MARKED.search(path.read_text())]
    assert {str(path.relative_to(ROOT)) for path in marked if path.parent.name != "contract"} == prove.OTHERS.keys()
    known = measure.by_name(rehearse=False)
    for module in (measure, tune):
        planned = module.steps(Plan(False, "out"))
        assert {step.question["name"] for step in planned if step.question} <= known.keys()


def test_what_is_measured_was_compiled_before() -> None:
    """Of backend triton: by processes side by side, of all that one step asks for, before that step."""
    compiled: set[tuple[str, str]] = set()
    for step in measure.steps(Plan(False, "out")):
        if not step.question:
            _, module, dtype, *names = step.command
            assert module == "bench.gpu.compiling"
            compiled |= {(name, dtype) for name in names}
            continue
        work = measure.by_name(rehearse=False)[step.question["name"]]
        if registry.backend("triton").has(work.op):
            parts = [part.name for part in compiling.apart([work], FULL.batch)]
            assert {(name, step.question["dtype"]) for name in parts} <= compiled, step.name
    assert {w.op for w in measure.every_workload() if measure.is_headline(w)} == {
        w.op for w in measure.every_workload()
    }


def test_what_is_needed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu.main(["--needs"]) == 0
    lines = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines() if line}
    assert {lines[name] for name in ("torch", "pycocotools", "pillow", "pyyaml", "pybind11", "pytest")} == {"found"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in ("tyro", "hypothesis") else object())
    monkeypatch.setitem(sys.modules, "rich", None)  # as if it were there without something that it needs
    monkeypatch.setattr(ready, "version", lambda package: "0.24" if package == "torchvision" else "2000")
    assert gpu.main(["--needs"]) == 1
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in capsys.readouterr().out.splitlines() if line}
    assert lines["tyro"].startswith("missing: not there") and lines["hypothesis"].startswith("not there")
    assert lines["torchvision"].startswith("found")
    with pytest.raises(SystemExit):
        gpu.main(["--rehearse"])
    lacking = "rich (import of rich halted; None in sys.modules), tyro (not there); --needs lists them all"
    assert f"packages must be installed, missing are {lacking}" in capsys.readouterr().err
    monkeypatch.setattr(ready, "version", lambda package: "0.23")
    assert "torchvision (0.23, not 0.24)" in ready.missing()
    assert re.search(r"setuptools +0\.23, not 77 ", ready.needs_table())  # Triton's kernels need no compiler


def test_what_is_needed_is_told_where_it_is_missing() -> None:
    """Nothing but PyTorch and NumPy is there."""
    hidden = ("pycocotools", "tyro", "rich", "PIL", "lazy_loader", "safetensors", "torchvision", "triton", "yaml")
    code = f"""
import sys
sys.modules.update(dict.fromkeys({hidden}))
from bench.gpu.__main__ import main
main(["--needs"])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"pycocotools +missing: not there", done.stdout), done.stdout


def test_without_a_gpu_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main([f"--out={tmp_path / 'out'}"])
    assert "PyTorch finds no CUDA or ROCm device; --rehearse runs the stages on the CPU" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_extension_is_compiled_where_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def program(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, int("-c" in command or fails), "", "no nvcc found")

    monkeypatch.setattr(subprocess, "run", program)
    fails = False
    assert re.fullmatch(r"the extension was compiled in \d s", ready.build())
    assert asked[1][1:] == ["setup.py", "--quiet", "build_ext", "--inplace"]
    fails = True
    with pytest.raises(RuntimeError, match="the extension does not compile:\nno nvcc found"):
        ready.build()


FAILING = """
from typing import NamedTuple
import pytest, torch

class Inputs(NamedTuple):
    maps: list
    name: str

class Op:
    def __init__(self):
        self.weight = torch.full((2, 2), 7.0, dtype=torch.bfloat16)

def compare(found, expected):
    assert torch.equal(found, expected)

@pytest.mark.parametrize("n", [1, 3])
def test_op(n):
    inputs, op = Inputs([torch.arange(6).view(2, 3).T], "x"), Op()
    compare(torch.full((1,), float(n)), torch.ones(1))
"""


def test_the_tensors_of_a_failing_test_are_kept(tmp_path: Path) -> None:
    (tmp_path / "test_op.py").write_text(FAILING)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "bench.gpu.failures"]
    environment = {**os.environ, failures.VARIABLE: str(tmp_path / "kept"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, f"--rootdir={tmp_path}", "test_op.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert prove.judge(done.returncode, done.stdout).rows == [{"failed": 1, "passed": 1}], done.stdout + done.stderr
    (path,) = (tmp_path / "kept").iterdir()
    assert path.name == "test_op.py-test_op-3-.safetensors"
    kept = {name.partition(".")[2]: x for name, x in load_file(path).items()}
    assert kept.keys() == {"test_op.inputs.0.0", "test_op.op.weight", "compare.found", "compare.expected"}
    assert torch.equal(kept["test_op.inputs.0.0"], torch.arange(6).view(2, 3).T)
    assert kept["test_op.op.weight"].dtype == torch.bfloat16 and kept["compare.found"] == 3
    with safe_open(path, "pt") as file:
        assert file.metadata()["told"].startswith("test_op.py::test_op[3]\nAssertionError")


def test_tensors_that_the_device_keeps_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "MOST_BYTES", 40)
    lost = torch.ones(2)
    monkeypatch.setattr(lost, "detach", lambda: 1 / 0, raising=False)
    failures.keep(tmp_path / "f.safetensors", iter([("a", lost), ("b", torch.ones(9)), ("c", torch.ones(99))]), "told")
    assert load_file(tmp_path / "f.safetensors").keys() == {"b"}
    with safe_open(tmp_path / "f.safetensors", "pt") as file:
        assert file.metadata() == {"told": "told\na is lost: division by zero"}


def test_without_hypothesis_its_tests_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("hypothesis", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, sys.modules.get(name))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    failures.stand_ins()
    from hypothesis import given, settings
    from hypothesis import strategies as st

    @settings(deadline=None)
    @given(size=st.tuples(st.integers(0, 3), st.sampled_from([1])).map(tuple))
    def test(size: Any) -> None: ...

    (mark,) = test.pytestmark  # type: ignore[attr-defined]
    assert mark.name == "skip" and mark.kwargs["reason"] == "hypothesis is not installed"


@pytest.mark.parametrize(
    ("status", "output", "expected"),
    [
        (0, "========= COMPUTE-SANITIZER\n3 cases ran\n========= ERROR SUMMARY: 0 errors\n", ("ok", "no reports")),
        (
            86,
            "========= COMPUTE-SANITIZER\n========= Invalid __global__ read of size 4 bytes\n"
            "========= ERROR SUMMARY: 12 errors\n",
            ("failed", "12 reports: Invalid __global__ read of size 4 bytes"),
        ),
        (
            86,
            "========= COMPUTE-SANITIZER\n========= Error: Race reported between Write and Read\n"
            "========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)\n",
            ("failed", "2 reports: Error: Race reported between Write and Read"),
        ),
        (0, "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", ("ok", "no reports")),
        (1, "Device not supported\n", ("failed", "it could not run: exit status 1")),
    ],
)
def test_a_sanitizer_s_reports_are_counted(status: int, output: str, expected: tuple[str, str]) -> None:
    assert sanitize.judge(status, output)[:2] == expected


def test_pytests_words_are_read() -> None:
    assert prove.judge(0, "..\n12 passed, 3 skipped, 400 deselected in 2.31s\n").rows == [{"passed": 12, "skipped": 3}]
    assert prove.judge(1, "F\n1 failed, 2 passed in 1s\n")[:2] == ("failed", "1 failed, 2 passed in 1s")
    assert prove.judge(5, "7 deselected in 0.1s\n").status == "ok"
    assert prove.judge(-11, "Fatal Python error: Segmentation fault\n").status == "failed"


class FakeGpu:
    """As much of torch.cuda as the clock needs. A call takes 1 ms, flushing the cache 5, a replay what was captured."""

    def __init__(self) -> None:
        self.now, self.captured, self.capturing, self.debug = 0.0, 0, False, "default"

    def call(self) -> None:
        if self.capturing:
            self.captured += 1
        else:
            self.now += 1

    def install(self, patch: pytest.MonkeyPatch, waits: bool) -> None:
        gpu = self

        class Event:
            def __init__(self, enable_timing: bool) -> None: ...

            def record(self) -> None:
                self.at = gpu.now

            def synchronize(self) -> None: ...

            def elapsed_time(self, other: Any) -> float:
                return float(other.at - self.at)

        class Graph:
            def replay(self) -> None:
                gpu.now += self.calls

        class Capture:
            def __init__(self, graph: Any) -> None:
                self.graph = graph

            def __enter__(self) -> None:
                gpu.capturing, gpu.captured = True, 0

            def __exit__(self, *_: object) -> None:
                gpu.capturing, self.graph.calls = False, gpu.captured

        class Stream:
            def wait_stream(self, other: Any) -> None: ...

            def __enter__(self) -> None: ...

            def __exit__(self, *_: object) -> None: ...

        def flush() -> None:
            gpu.now += 5

        patch.setattr(clock, "flush", flush)
        patch.setattr(clock.time, "perf_counter", lambda: gpu.now / 1e3)
        names = {"Event": Event, "CUDAGraph": Graph, "graph": Capture, "Stream": Stream, "current_stream": Stream}
        names |= {"stream": lambda stream: stream, "synchronize": lambda: None}
        names |= {"set_sync_debug_mode": lambda mode: setattr(gpu, "debug", mode)}
        for name, value in names.items():
            patch.setattr(torch.cuda, name, value)


@pytest.mark.parametrize("waits", [False, True])
def test_the_clock_of_a_gpu(waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeGpu()
    fake.install(monkeypatch, waits)

    def run() -> None:
        if waits and fake.debug == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        fake.call()

    found = clock.times(run, torch.device("cuda"))
    assert found[:3] == pytest.approx((1e-3, 1e-3, 1e-3))
    assert found.how == ("host" if waits else "graph") and fake.debug == "default"


def test_the_tables_of_times() -> None:
    common = {"op": "refine", "shape": "level4", "mode": "forward", "dtype": "fp16", "cold": 3e-6, "call": 5e-6}
    common |= {"how": "graph", "arithmetic": 0.25, "memory": 0.5}
    rows = [
        {**common, "who": "eager", "ours": False, "warm": 4e-6},
        {**common, "who": "triton", "ours": True, "warm": 2e-6},
        {**common, "who": "compile", "ours": False, "warm": 3e-6},
        {**common, "op": "other", "who": "eager", "ours": False, "warm": 4e-6},
    ]
    (table,) = measure.tables(rows).values()
    assert table == [
        ["op", "ours", "warm", "cold", "of the roof, cold", "call", "eager", "compile"],
        ["refine level4 forward", "triton", "2.0 µs", "3.0 µs", "50% of memory", "5.0 µs", "2.00", "1.50"],
        ["other level4 forward", "-", "", "", "", "", "", ""],
    ]
    assert measure.said(rows[:3]) == "triton 2.0 µs, 1.50 times as fast as compile"
    assert measure.said(rows[:1]) == "there is no kernel of ours"


def test_what_was_measured_goes_into_the_history(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = {"op": "refine", "shape": "level4", "mode": "forward", "dtype": "fp16"}
    times = [("eager", False, 4e-6), ("triton", True, 2e-6), ("compile", False, 3e-6)]
    head = {
        "device": "NVIDIA H200, sm_90",
        "torch": "2.11.0, CUDA 13.0",
        "commit": "abc",
        "date": "2026-12-01T00:00:00",
    }
    rows = [{**common, "who": who, "ours": ours, "warm": warm} for who, ours, warm in times]
    steps = {"a": Result("ok", rows=rows)._asdict(), "b": Result("failed", rows=rows[:1])._asdict()}
    (tmp_path / "report.json").write_text(json.dumps({"head": head, "stages": {measure.NAME: steps}}))
    path = tmp_path / "history.csv"
    assert gpu.main([f"--out={tmp_path}", f"--record={path}"]) == 0
    found = record.read(path)
    assert [(row.peer, row.ratio) for row in found] == [("eager", "2"), ("compile", "1.5")]
    assert found[0][:6] == ("abc", "2026-12-01T00:00:00", "NVIDIA H200", "sm_90", "1", "2.11.0")
    assert found[0][6:13] == ("refine", "level4", "forward", "fp16", "cuda", "triton", "2e-06")
    path.write_text("other\n")
    assert gpu.main([f"--out={tmp_path}", f"--record={path}"]) == 1
    assert "header must be commit,date," in capsys.readouterr().err


def test_the_fastest_configuration_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One cannot be had, one gains too little, and the best comes last."""
    key = ("conv3x3.forward", Shape(16, 64, 64))
    times = {Config(64, 4, 3): 1.0, Config(64, 4, 2): 0.99, Config(64, 4, 4): None, Config(256, 8, 2): 0.5}

    def seconds(self: Any, key: Any, config: Config, run: Any) -> float:
        found = times.get(config, 2.0)
        if found is None:
            raise tune.Unfit
        return found

    monkeypatch.setattr(tune.Answers, "seconds", seconds)
    answers = tune.Answers(tmp_path, rehearse=True)
    answers.candidates = tune.CANDIDATES
    row = answers.best_of(
        key, measure.Workload("op", "shape", lambda device: None, lambda randn: ()), "fp16", None, time.monotonic() + 60
    )  # type: ignore[arg-type,return-value]
    assert (row["was"], row["best"], row["times"], row["tried"]) == ([64, 4, 3], [256, 8, 2], 2.0, len(tune.CANDIDATES))
    answers.write()
    assert tuning.read(answers.file) == {key: Config(256, 8, 2)}
    assert tune.Answers(tmp_path, rehearse=True).found == {key: Config(256, 8, 2)}  # a later process goes on

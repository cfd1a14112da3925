"""The bench runs, measures everyone there is, times no wrong result, and keeps a history."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from sharpmask_kernels import env, registry
from sharpmask_kernels.backends.reference import refinement
from sharpmask_kernels.machine import cpu_model

ROOT = Path(__file__).parents[1]

CONDITIONS = r"(?:baseline|avx2|avx512|neon), \d+ threads"
SHARE = r"\d+% of (arithmetic|memory)"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Modules of bench, which is not installed."""
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)  # the bench changes it
    return lambda name: importlib.import_module(f"bench.{name}")


@pytest.mark.slow
def test_compare(tmp_path: Path) -> None:
    """In a process of its own: the profiler and the peers' libraries find no threads and no state of other tests."""
    given = ["--small", "--device=cpu", "--rounds=1", f"--profile={tmp_path}"]
    command = [sys.executable, "-X", "faulthandler", "-m", "bench.compare", *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    header, *tables = re.split(rf"\n\n(?=\w+, fp32, {CONDITIONS}: )", done.stdout)
    for line in ("torch  ", "triton  ", "numpy  ", "sharpmask  ", "CPU  ", "compiled by  ", "commit  "):
        assert f"\n{line}" in f"\n{header}"
    assert "torch threads" in header
    assert [table.partition(",")[0] for table in tables] == list(registry.OPS)
    for op, table in zip(registry.OPS, tables, strict=True):
        rows = [re.split("  +", line) for line in table.splitlines()[2:] if line]
        assert rows[0][:2] == ["", "eager"]
        for backend in filter(lambda name: registry.backend(name).has(op), registry.BACKENDS):
            measured = backend in rows[0]
            assert measured != bool(re.search(rf"(?m)^{backend} left out of .*\b{op}\b.*  \w+", header))
            assert measured or backend not in ("reference", "cpu")
        for name, *cells in rows[1:]:
            for contestant in rows[0][1:]:
                assert json.loads((tmp_path / f"{op}-{name.replace(' ', '-')}-{contestant}.json").read_text())
            assert len(cells) == len(rows[0]) - 1
            assert re.fullmatch(r"[\d.]+ ms", cells[0])
            assert all(re.fullmatch(r"\d+\.\d\d ± 0.00", cell) for cell in cells[1:])
        trained = sum(name.endswith((" training", " training-frozen")) for name, *_ in rows)
        has_gradient = hasattr(registry.room("reference", registry.ROOMS[op]), f"{op}_backward")
        assert trained == (len(rows) // 2 if has_gradient else 0)


@pytest.mark.parametrize(
    ("op", "rows"),
    [
        pytest.param("refine_windows", 3, marks=pytest.mark.slow),
        ("encode_windows", 2),
        pytest.param("refine", 8, marks=pytest.mark.slow),
    ],
)
def test_headline(bench: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str], op: str, rows: int) -> None:
    """Every row has our time, and its best peer comes before the others."""
    compare = bench("compare")
    given = ["--headline", "--small", "--device=cpu", "--rounds=1", "--peer=onnxruntime", f"--op={op}"]
    threads = torch.get_num_threads()
    try:
        assert compare.main(given) == 0
    finally:
        torch.set_num_threads(threads)
    _, peak, *tables = capsys.readouterr().out.split("\n\n")
    told = r"; peak: \d+ GFLOP/s of fp32 multiply-adds, [\d.]+ GB/s of copies; 1 rounds\."
    assert re.search(rf", (baseline|avx2|avx512|neon); torch .*{told}$", peak)
    times, memory = map(cells, tables)
    assert re.fullmatch(CONDITIONS, times[0][0]) and re.fullmatch(f"memory, {CONDITIONS}", memory[0][0])
    assert [row[0].split(",")[0] for row in times[1:]] == [op] * rows
    for work, ours, share, ratio, best, others in times[1:]:
        assert re.fullmatch(r"\d+\.\d\d ms \(cpu(-nhwc)?\)", ours)
        assert re.fullmatch(SHARE, share)
        ratios = [float(x.split()[-1]) for x in others.split(", ") if x]
        assert ratios == sorted(ratios) and float(ratio.split()[0]) <= min(ratios, default=np.inf)
        peers = {best, *(x.split()[0] for x in others.split(", ") if x)}
        if "full-size" in work:
            assert peers == {"full-size"}
        elif "crops" in work:
            assert peers == {"eager", "crop-first"}
        elif "backward" in work:
            assert peers == {"eager", "eager-nhwc"}
        else:
            assert {"eager", "eager-nhwc", "onnxruntime"} <= peers
    assert [len(row) for row in memory] == [3, 3, 3]


def cells(table: str) -> list[list[str]]:
    """Those of a Markdown table, row by row."""
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_headline_of_the_second_stage(bench: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    second_stage, measure = bench("second_stage"), bench("measure")
    given = Namespace(small=True, rounds=1), "avx2, 1 threads", bench("roofline").Peak(1e15, 1e15)
    head, *rows = second_stage.table(*given)
    assert [len(row) for row in rows] == [len(head)] * 2 and "avx2" in head[0]
    assert all(re.fullmatch("0% of arithmetic", row[2]) for row in rows)
    right = refinement.add_upsample_backward
    monkeypatch.setattr(refinement, "add_upsample_backward", lambda *given: [2 * g for g in right(*given)])
    with pytest.raises(measure.WrongResult, match="losses of a whole step"):
        second_stage.table(*given)


def test_a_headline_that_is_held(
    bench: Callable[[str], ModuleType], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process of its own holds everybody to the instruction set; who cannot be is named, and never the best."""
    compare, isa = bench("compare"), bench("isa")
    for variable in isa.VARIABLES["avx2"]:
        monkeypatch.delenv(variable, raising=False)
    given = ["--headline", "--small", "--device=cpu", "--rounds=1", "--op=encode_windows", "--isa=avx2", "--part=ops"]
    monkeypatch.chdir(ROOT)
    assert compare.main(given) == 0
    found = capfd.readouterr().out
    assert re.search(r"(?m)^CPU .*, AVX2$", found) and re.search(r"(?m)^instruction set +avx2, of ", found)
    assert re.search(r"(?m)^\| avx2, 2 threads \|", found)

    monkeypatch.setenv(isa.HELD, "avx2")
    peers, ops = bench("peers"), bench("workloads")
    workload = ops.refinement.workload("refine", 3, 2)
    names = [c.name for c in peers.contestants(workload, torch.float32, torch.device("cpu"), ["onnxruntime"])[0]]
    assert "onnxruntime-not-held" in names and "onnxruntime" not in names
    times = {name: np.array([float(i)]) for i, name in enumerate(["cpu", "onnxruntime-not-held", "eager"], 1)}
    comparison = bench("comparison").Comparison(workload, times, ["cpu"], list(times)[1:], bench("roofline").Cost(1, 1))
    row = bench("headline").cells("refine", comparison, None)
    assert row[2:] == ["-", "3.00 ± 0.00", "eager", "onnxruntime-not-held 2.00"]


def test_the_peak(bench: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    """What bounds a workload decides its share; a compiler is asked, and its absence is told."""
    roofline = bench("roofline")
    peak = roofline.Peak(flops=100.0, bytes=10.0)
    assert peak.share(roofline.Cost(flops=50, bytes=2), 1.0) == "50% of arithmetic"
    assert peak.share(roofline.Cost(flops=50, bytes=6), 2.0) == "30% of memory"
    monkeypatch.setattr(roofline, "ROUNDS", 1000)
    monkeypatch.setattr(roofline, "COPIED", 1 << 16)
    isa = dict(env.compiled_module())["instruction set"].partition(",")[0]
    found = roofline.measure(isa, 1)
    assert found.flops > 0 and found.bytes > 0
    monkeypatch.setenv("CXX", "/bin/false")
    with pytest.raises(RuntimeError, match=f"the peak of {isa} is not known: no working C"):
        roofline.measure(isa, 1)


def test_costs(bench: Callable[[str], ModuleType]) -> None:
    """Convolutions count, and every tensor once: of a merge of 4 + 4 channels into 2 on maps of 80 x 80."""
    measure, ops = bench("measure"), bench("workloads")
    given = torch.float32, torch.device("cpu")
    workload = ops.refinement.workload("merge_upsample", 3, 1)
    cells, weights = 80 * 80, 9 * 8 * 2
    forward = measure.Setting(workload, *given).cost
    assert forward == (2 * cells * weights, 4 * (8 * cells + weights + 2 + 2 * 4 * cells))
    trained = measure.Setting(workload._replace(training=True), *given).cost
    assert trained == (3 * forward.flops, forward.bytes + 4 * (8 * cells + weights + 2))
    assert bench("roofline").size(torch.ones(16, dtype=torch.bool)) == 2  # as bits
    assert bench("roofline").size([{"counts": b"abc"}, torch.ones(2)]) == 11


def test_peers_take_windows_in_parts_and_all_at_once(bench: Callable[[str], ModuleType]) -> None:
    measure, peers, ops = (bench(name) for name in ("measure", "peers", "workloads"))
    kind = torch.float32, torch.device("cpu")
    workload = ops.refine_windows.workload(100, (96, 128), "zeros")
    found, _ = peers.contestants(workload, *kind, ["onnxruntime"])
    names = [f"{peer}{batch}" for peer in ("eager", "onnxruntime") for batch in ("", "-whole")]
    assert {*names, "eager-whole-nhwc"} <= {contestant.name for contestant in found}
    assert not any("whole" in contestant.name for contestant in found if contestant.backend)
    setting, taken = measure.Setting(workload, *kind), {}
    for name in names:
        contestant = next(c for c in found if c.name == name)

        def spied(module: Any, example: Any, name: str = name, contestant: Any = contestant) -> Any:
            right = module.cut
            module.cut = lambda inputs, part: taken.setdefault(name, []).append(part) or right(inputs, part)
            return contestant.prepare(module, example)

        setting.runner(peers.Contestant(name, spied))()
    for name, parts in taken.items():
        assert {part.stop - part.start for part in parts} == ({100} if "whole" in name else {50}), name
    few = ops.refine_windows.workload(50, (96, 128), "zeros")
    assert not any("whole" in c.name for c in peers.contestants(few, *kind, ["onnxruntime"])[0])


def test_overhead(bench: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]) -> None:
    """Every op is called, with gradients where it has them."""
    overhead = bench("overhead")
    threads = torch.get_num_threads()
    try:
        assert overhead.main(["--rounds=1", "--markdown"]) == 0
    finally:
        torch.set_num_threads(threads)
    head, *rows = cells(capsys.readouterr().out.partition("\n\n")[2])
    assert re.fullmatch(f"a call, {CONDITIONS}", head[0])
    assert [row[0].split(",")[0] for row in rows] == [workload.op for workload in overhead.workloads()]
    assert {row[0].split(",")[0] for row in rows} == set(registry.OPS)
    assert {"refine, forward", "refine, training", "encode_windows, forward"} <= {row[0] for row in rows}


@pytest.mark.parametrize("name", ["compile", "compile-freezing", "compile-max-autotune", "onnxruntime", "openvino"])
def test_peers_compute_what_plain_pytorch_does(bench: Callable[[str], ModuleType], name: str) -> None:
    """Of a module, and of the layers of one that loops over windows; a change of the inputs is seen."""
    measure, peers, ops = (bench(module) for module in ("measure", "peers", "workloads"))
    for workload in (
        ops.refinement.workload("refine", 3, 2),
        ops.refine_windows.workload(100, (96, 128), "zeros", 0.2),
    ):
        kind = torch.float32, torch.device("cpu")
        found, left_out = peers.contestants(workload, *kind, [name])
        if importlib.util.find_spec(name.partition("-")[0]) is None and not name.startswith("compile"):
            assert left_out[name] == f"{name} is not installed"
            continue
        setting = measure.Setting(workload, *kind)
        contestant = next(c for c in found if c.name == name)
        setting.runner(contestant)
        spoiled = peers.Contestant(name, lambda module, x, c=contestant: spoil(c.prepare(module, x)))
        with pytest.raises(measure.WrongResult, match=f"{name} differs from plain PyTorch"):
            setting.runner(spoiled)


def spoil(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda first, *rest: function(first.flip(2), *rest)


def nan(result: Any) -> Any:
    return result * float("nan")


def one_cell(result: Any) -> Any:
    result[0][0, 0, 0, 0] += 1
    return result


def last_gradient(result: Any) -> Any:
    result[-1].mul_(1.01)
    return result


def last_mask(result: Any) -> Any:
    data, offsets = result
    data[offsets[-2] + 1] ^= 1
    return data, offsets


@pytest.mark.parametrize(
    ("function", "spoil"),
    [
        ("gather_windows", nan),
        ("merge_upsample", one_cell),
        ("refine_backward", last_gradient),
        ("encode_windows", last_mask),
    ],
)
def test_wrong_results_are_not_timed(
    bench: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    function: str,
    spoil: Callable[[Any], Any],
) -> None:
    compare = bench("compare")
    reference = registry.room("reference", registry.ROOMS[function.removesuffix("_backward")])
    right = getattr(reference, function)
    monkeypatch.setattr(reference, function, lambda *arguments: spoil(right(*arguments)))
    timed: list[int] = []
    monkeypatch.setattr(compare, "interleaved", lambda runs, rounds: timed.append(1) or np.ones((len(runs), 1)))
    assert compare.main(["--small", "--device=cpu", f"--op={function.removesuffix('_backward')}"]) == 1
    assert "reference differs from plain PyTorch" in capsys.readouterr().err
    assert len(timed) == function.endswith("_backward")  # forward only, before the gradients


FAULT = """
from sharpmask_kernels.backends.reference import gather_windows as reference

right = reference.gather_windows
reference.gather_windows = lambda *arguments: right(*arguments).neg()
"""


def test_pytest_bench(tmp_path: Path) -> None:
    """A few benchmarks, with a fault planted in one op of one backend."""
    (tmp_path / "planted_fault.py").write_text(FAULT)
    saved = tmp_path / "times.json"
    command = [sys.executable, "-m", "pytest", "bench", "-p", "planted_fault", "-p", "no:cacheprovider"]
    chosen = ["--benchmark-only", "--small", "--device=cpu", "-k", "add_upsample-level1 or gather_windows-stage1"]
    quick = ["--benchmark-max-time=0.001", "--benchmark-min-rounds=1", f"--benchmark-json={saved}"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "250"}
    environment.pop("PYTEST_XDIST_WORKER", None)  # under pytest-xdist, pytest-benchmark measures nothing
    done = subprocess.run([*command, *chosen, *quick], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    failed = re.findall(r"^FAILED .*\[(.*)\] - (.*)", done.stdout, re.MULTILINE)
    assert {name.rpartition("0-")[2] for name, _ in failed} == {
        f"{kind}-reference{layout}" for kind in ("forward", "training") for layout in ("", "-nhwc")
    }
    assert all("gather_windows-" in name and "WrongResult" in text for name, text in failed)

    assert f"torch: {torch.__version__}" in done.stdout
    times = json.loads(saved.read_text())
    assert times["machine_info"]["bench"].keys() >= {"torch", "triton", "numpy", "cores", "compiled by", "commit"}
    names = {benchmark["param"] for benchmark in times["benchmarks"]}
    assert not names & {name for name, _ in failed}
    assert names > {"add_upsample-level1-2x10x10-forward-eager", "add_upsample-level1-2x10x10-training-reference"}
    assert "gather_windows-stage1-10x10x10-training-cpu-nhwc" in names
    groups = {benchmark["group"] for benchmark in times["benchmarks"]}
    assert {group.split()[0] for group in groups} == {"add_upsample", "gather_windows"}
    assert len(groups) == 4


def test_runs_are_interleaved(bench: Callable[[str], ModuleType]) -> None:
    turns: list[str] = []
    runs = [lambda name=name: turns.append(name) for name in "abc"]
    times = bench("compare").interleaved(runs, 2)
    assert "".join(turns) == "abc" * 3  # the first turn is not timed
    assert [len(own) for own in times] == [2, 2, 2]


def test_inputs_take_turns(bench: Callable[[str], ModuleType]) -> None:
    measure, peers, workloads = (bench(name) for name in ("measure", "peers", "workloads"))
    seen: list[torch.Tensor] = []

    def prepare(module: Any, example: tuple[torch.Tensor, ...]) -> Any:
        return lambda *inputs: seen.append(inputs[0]) or module(*inputs)

    setting = measure.Setting(workloads.refinement.workload("refine", 3, 2), torch.float32, torch.device("cpu"))
    run = setting.runner(peers.Contestant("spy", prepare, channels_last=True), first=1)
    for _ in range(2 * measure.INPUT_SETS):
        run()
    first = [x.data_ptr() for x in seen[1 : 1 + measure.INPUT_SETS]]  # the very first was the check
    assert len(set(first)) == measure.INPUT_SETS
    assert [x.data_ptr() for x in seen[1 + measure.INPUT_SETS :]] == first
    assert seen[0].data_ptr() == first[-1]
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)


@pytest.fixture
def comparison(bench: Callable[[str], ModuleType]) -> Any:
    """Two peers beside a backend, one of them timed once only."""
    workload = bench("workloads").refinement.workload("refine", 3, 2)._replace(training=True)
    times = {
        "eager": np.array([3.0, 4.0, 8.0]),
        "compile": np.array([10.0]),
        "reference": np.array([1.0] * 3),
        "cpu": np.array([1.0, 2.0, 2.0]),
    }
    return bench("comparison").Comparison(workload, times, ["cpu"], ["compile", "eager"], bench("roofline").Cost(1, 1))


def test_peers_are_compared_round_by_round(comparison: Any) -> None:
    assert comparison.fastest == "cpu"
    assert {name: list(ratios) for name, ratios in comparison.ranked().items()} == {
        "eager": [3, 2, 4],
        "compile": [5],
    }


def test_the_history_grows(bench: Callable[[str], ModuleType], comparison: Any, tmp_path: Path) -> None:
    record, path = bench("record"), tmp_path / "folder" / "history.csv"
    options = Namespace(dtype="fp32", device="cpu")
    for _ in range(2):
        record.Recorder(path, options).add(comparison)
    lines = path.read_text().splitlines()
    columns = "commit,date,machine,isa,threads,torch,op,shape,mode,dtype,device,backend,seconds,peer,ratio"
    assert len(lines) == 5 and lines[0] == columns
    rows = record.read(path)
    assert [(row.peer, row.ratio) for row in rows] == 2 * [("eager", "3"), ("compile", "5")]
    assert rows[0]._replace(date="") == rows[2]._replace(date="")
    row = rows[0]
    assert row.machine == cpu_model() and row.isa in ("baseline", "avx2", "avx512", "neon")
    assert (row.threads, row.torch) == (str(torch.get_num_threads()), torch.__version__)
    assert (row.op, row.shape, row.mode) == ("refine", "level4-2x80x80", "training")
    assert (row.dtype, row.device, row.backend, row.seconds) == ("fp32", "cpu", "cpu", "2")
    assert re.fullmatch(r"[0-9a-f]{12}(-dirty)?|unknown: .*", row.commit)
    assert os.listdir(path.parent) == ["history.csv"]  # nothing half-written


@pytest.mark.parametrize("text", ["", "commit,ratio\n1,2\n"])
def test_another_history_is_left_alone(
    bench: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    path = tmp_path / "history.csv"
    path.write_text(text)
    given = ["--small", "--device=cpu", "--op=encode_windows", f"--record={path}"]
    assert bench("compare").main(given) == 1
    assert "header must be commit,date," in capsys.readouterr().err
    assert path.read_text() == text


def test_an_interrupted_record_leaves_the_history_whole(
    bench: Callable[[str], ModuleType], comparison: Any, tmp_path: Path
) -> None:
    record, path = bench("record"), tmp_path / "history.csv"
    recorder = record.Recorder(path, Namespace(dtype="fp32", device="cpu"))
    recorder.add(comparison)
    before = path.read_text()

    def rows() -> Any:
        yield from recorder.rows(comparison)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record.append(path, rows())
    assert path.read_text() == before


def test_the_history_of_this_checkout_can_be_read(bench: Callable[[str], ModuleType]) -> None:
    record = bench("record")
    for row in record.read(record.HISTORY):
        assert row.op in registry.OPS
        assert float(row.seconds) > 0 and float(row.ratio) > 0


def test_compare_records(bench: Callable[[str], ModuleType], tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    for given in (["--op=encode_windows", "--peer=compile"], ["--headline", "--op=encode_windows"]):
        assert bench("compare").main(["--small", "--device=cpu", "--rounds=1", f"--record={path}", *given]) == 0
    rows = bench("record").read(path)
    assert {row.op for row in rows} == {"encode_windows"}
    assert [row.peer for row in rows if row.peer in ("crop-first", "full-size")] != []
    assert len({row.date for row in rows}) <= 2

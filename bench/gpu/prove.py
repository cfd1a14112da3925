"""Stage prove: the self-check with its duration, the contract on both GPU backends, and what only a GPU has.

The tests run in a process for each file and backend, several side by side: a kernel that breaks its process, and with
it all that comes after, spoils no other file.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path

from sharpmask_kernels import registry

from ..process import ROOT
from . import check
from .compiling import ONE_THREAD
from .failures import VARIABLE
from .steps import Plan, Result, Step, judged

AT_ONCE = max(1, min(14, (os.cpu_count() or 1) - 2))
SECONDS = 240.0
"""Of a file's tests on a backend at most, and of an op's self-check: compiling is most of it."""

BACKENDS = ("cuda", "triton")
CONTRACT = "tests/contract"
OTHERS = {
    "tests/kernels/test_gpu.py": ("compiled", "not compiled"),
    "tests/search/test_compiled.py": ("",),
    "tests/search/test_precision.py": ("",),
    "tests/training/test_steps.py": ("deepmask", "sharpmask", "joint", "copied"),
    "tests/cli/test_gpu.py": ("propose or eval", "patches", "dense"),
}
"""Files with other tests marked gpu, and which of them a process takes: some take as long as a file of the contract."""

LONG = (
    "test_gradients", "test_decoder", "test_decoder_pytorch", "test_refinement", "test_pytorch", "test_horizontal",
    "test_transforms",
)  # fmt: skip
"""Files to be begun first."""

NO_BACKEND = "test_topk_windows"
"""A file of the contract for PyTorch's own operations."""

DRAWN = "hypothesis"
"""The mark of tests that draw their shapes. Triton compiles for each of these, so they come last."""

REHEARSED = ("test_refine_windows", "test_gather_windows")
REHEARSED_TESTS = "(cuda and test_layouts) or (triton and test_out_of_the_map)"
"""What a rehearsal runs, in one process."""


def steps(plan: Plan) -> list[Step]:
    works = [(b, op) for b in BACKENDS[::-1] for op in registry.OPS if registry.backend(b).has(op)]
    if plan.rehearse:
        return [_check("cuda", check.REHEARSED, plan), _tests("contract", REHEARSED, REHEARSED_TESTS, plan)]
    files = {path.stem for path in (ROOT / CONTRACT).glob("test_*.py")} - {NO_BACKEND}
    names = sorted(files, key=lambda name: (name not in LONG, name))
    given = [name for name in names if f"from {DRAWN} import" in (ROOT / CONTRACT / f"{name}.py").read_text()]

    def contract(files: list[str], mark: str, told: str = "") -> list[Step]:
        works = itertools.product(files, BACKENDS[::-1])
        return [_tests(f"{name} {b}{told}", (name,), f"{b}-cuda and not onnx", plan, mark=mark) for name, b in works]

    others = [
        _tests(f"{path.removeprefix('tests/')} {chosen}".strip(), (), chosen, plan, path)
        for path, each in OTHERS.items()
        for chosen in each
    ]
    return [
        *(_check(*work, plan) for work in works),
        *contract(names, f"gpu and not {DRAWN}"),
        *others,
        _tests(NO_BACKEND, (NO_BACKEND,), "cuda", plan),
        *contract(given, f"gpu and {DRAWN}", " drawn"),
    ]


def _check(backend: str, op: str, plan: Plan) -> Step:
    device, extra = ("cpu", ["--rehearse"]) if plan.rehearse else ("cuda", [])
    command = ("-m", "bench.gpu.check", backend, op, device, str(Path(plan.folder, "failures")), *extra)
    return Step(f"self-check {backend} {op}", SECONDS, command, environment=ONE_THREAD)


def _tests(name: str, contract: Sequence[str], chosen: str, plan: Plan, *paths: str, mark: str = "gpu") -> Step:
    command = ["-m", "pytest", "-q", "--maxfail=40", "-p", "no:cacheprovider", "-p", "bench.gpu.failures"]
    command += [*([] if plan.rehearse else ["-m", mark]), *(["-k", chosen] if chosen else [])]
    command += [*(f"{CONTRACT}/{file}.py" for file in contract), *paths]
    folder = str(Path(plan.folder, "failures"))
    return Step(name, SECONDS, tuple(command), environment={VARIABLE: folder, **ONE_THREAD})


NONE_CHOSEN = 5
"""pytest's exit status where a file has no test of a backend."""


def judge(status: int, output: str) -> Result:
    """What pytest or the self-check has found."""
    if status == NONE_CHOSEN:
        return Result("ok", "no tests of this backend")
    found = judged(status, output)
    counts = {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|skipped|error)", found.said)}
    return found._replace(said=found.said.strip("= "), rows=[counts] if counts else [])

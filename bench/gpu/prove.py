"""Stage prove: the self-check with its duration, the contract on both GPU backends, and what only a GPU has.

The tests run in a process for each file and backend, several side by side: a kernel that breaks its process, and with
it all that comes after, spoils no other file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from ..process import ROOT
from .failures import VARIABLE
from .steps import Plan, Result, Step, judged

AT_ONCE = max(1, min(8, (os.cpu_count() or 1) // 2))
SECONDS = 150.0
"""Of a file's tests on a backend: compiling is most of it."""

BACKENDS = ("cuda", "triton")
CONTRACT = "tests/contract"
OTHERS = ("tests/kernels/test_gpu.py", "tests/search", "tests/cli/test_gpu.py")
"""Files and folders with other tests marked gpu."""

LONG = ("test_gradients", "test_decoder", "test_refinement", "test_pytorch", "test_horizontal")
"""Files to be begun first."""

REHEARSED = ("test_refine_windows", "test_gather_windows")
REHEARSED_TESTS = "(cuda and test_layouts) or (triton and test_out_of_the_map)"
"""What a rehearsal runs, in one process."""


def steps(plan: Plan) -> list[Step]:
    checks = [_check(backend, plan) for backend in BACKENDS]
    if plan.rehearse:
        return [checks[0], _tests("contract", REHEARSED, REHEARSED_TESTS, plan)]
    names = sorted((path.stem for path in (ROOT / CONTRACT).glob("test_*.py")), key=lambda name: name not in LONG)
    contract = [
        _tests(f"{name} {b}", (name,), f"{b}-cuda and not onnx", plan) for name in names for b in BACKENDS[::-1]
    ]
    others = [_tests(path.removeprefix("tests/"), (), "", plan, path) for path in OTHERS]
    return [*checks, *contract, *others]


def _check(backend: str, plan: Plan) -> Step:
    device, extra = ("cpu", ["--rehearse"]) if plan.rehearse else ("cuda", [])
    command = ("-m", "bench.gpu.check", backend, device, str(Path(plan.folder, "failures")), *extra)
    return Step(f"self-check {backend}", 100.0, command)


def _tests(name: str, contract: Sequence[str], chosen: str, plan: Plan, *paths: str) -> Step:
    command = ["-m", "pytest", "-q", "--maxfail=40", "-p", "no:cacheprovider", "-p", "bench.gpu.failures"]
    command += [*([] if plan.rehearse else ["-m", "gpu"]), *(["-k", chosen] if chosen else [])]
    command += [*(f"{CONTRACT}/{file}.py" for file in contract), *paths]
    return Step(name, SECONDS, tuple(command), environment={VARIABLE: str(Path(plan.folder, "failures"))})


NONE_CHOSEN = 5
"""pytest's exit status where a file has no test of a backend."""


def judge(status: int, output: str) -> Result:
    """What pytest or the self-check has found."""
    if status == NONE_CHOSEN:
        return Result("ok", "no tests of this backend")
    found = judged(status, output)
    counts = {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|skipped|error)", found.said)}
    return found._replace(said=found.said.strip("= "), rows=[counts] if counts else [])

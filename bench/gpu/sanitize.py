"""Stage sanitize: compute-sanitizer on every kernel, with small inputs, one process for each tool, backend and op.

The tools look at our kernels alone, except initcheck, which must see whatever writes. Those of CUDA are told from
PyTorch's by their namespace, Triton's by their names.
"""

from __future__ import annotations

import os
import re
import shutil

from sharpmask_kernels import registry

from ..process import ROOT
from .steps import Plan, Result, Step

AT_ONCE = max(1, min(8, (os.cpu_count() or 1) // 2))
"""No more: the tools take ports, ten by default."""
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
SECONDS = 90.0
FOUND = 86
"""The exit status that tells a finding from a failure of the program."""

OF_CUDA = ("kns=sharpmask",)
LAUNCHED = re.compile(r"\bkernels\.(\w+)")
"""A Triton kernel where it is launched."""
NAME = "compute-sanitizer"
SUMMARY = re.compile(r"=+ (?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)")

PLACE = re.compile(r"=+ +at (?:void )?([\w:]+)")
"""The kernel that a report is of."""

ALLOCATE = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
"""Else tensors are parts of larger allocations, and the tools do not see their ends."""

REHEARSED = ("triton", "gather_windows")


def steps(plan: Plan) -> list[Step]:
    works = [
        (b, t, op) for b in ("cuda", "triton") for t in TOOLS for op in registry.OPS if registry.backend(b).has(op)
    ]
    if plan.rehearse:
        return [_step("rehearsal", *REHEARSED, (), ("--rehearse",), None)]
    program = shutil.which(NAME) or _beside_nvcc()
    obstacle = None if program else f"{NAME}, which comes with the CUDA toolkit, is not on the path"
    return [
        _step(tool, backend, op, (program or NAME, "--tool", tool, *options(tool, backend)), (), obstacle)
        for backend, tool, op in works
    ]


def _beside_nvcc() -> str | None:
    folders = [os.environ.get("CUDA_HOME") or "/usr/local/cuda", os.path.dirname(shutil.which("nvcc") or "") + "/.."]
    return next(filter(None, (shutil.which(NAME, path=f"{folder}/bin") for folder in folders)), None)


def options(tool: str, backend: str) -> tuple[str, ...]:
    # By default a tool gives up on a program that is busy with other things, such as importing PyTorch, for 10 s.
    common = ["--launch-timeout", str(int(SECONDS)), "--error-exitcode", str(FOUND)]
    common += ["--target-processes", "application-only", "--report-api-errors", "no"]
    filters = () if tool == "initcheck" else OF_CUDA if backend == "cuda" else of_triton()
    return (*common, *(word for name in filters for word in ("--kernel-name", name)))


def of_triton() -> list[str]:
    """A filter for each of Triton's kernels: its name in the machine code is that of its function."""
    files = (ROOT / "sharpmask_kernels" / "backends" / "triton").glob("*.py")
    return sorted({f"kne={name}" for file in files for name in LAUNCHED.findall(file.read_text(encoding="utf-8"))})


def _step(
    tool: str, backend: str, op: str, program: tuple[str, ...], extra: tuple[str, ...], obstacle: str | None
) -> Step:
    command = ("-m", "bench.gpu.cases", backend, op, *extra)
    return Step(f"{tool} {op} {backend}", SECONDS, command, program, ALLOCATE, obstacle=obstacle)


def judge(status: int, output: str) -> Result:
    """What a tool has found: its summary, and its first report."""
    counts = [int(a or b) for a, b in SUMMARY.findall(output)]
    reports = sum(counts)
    rows = [{"reports": reports}]
    if status == 0 and not reports:
        return Result("ok", "no reports" if counts else "no tool: the kernels ran", rows)
    if reports:
        first = next((line for line in output.splitlines() if re.match(r"=+ \S", line) and "COMPUTE" not in line), "")
        places = ", ".join(sorted(set(PLACE.findall(output))))
        return Result("failed", f"{reports} reports: {first.strip('= ')}" + (f"; in {places}" if places else ""), rows)
    return Result("failed", f"it could not run: exit status {status}", rows)

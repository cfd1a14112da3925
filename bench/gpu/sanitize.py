"""Stage sanitize: compute-sanitizer on every kernel, with small inputs, one process for each tool, backend and op.

The CUDA kernels are told from PyTorch's by their namespace, so the tools look at them alone. Triton's have none: there
the tools look at all kernels of the process, which computes nothing but the op.
"""

from __future__ import annotations

import os
import re
import shutil

from sharpmask_kernels import registry

from .steps import Plan, Result, Step

AT_ONCE = max(1, min(6, (os.cpu_count() or 1) // 2))
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
SECONDS = 90.0
FOUND = 86
"""The exit status that tells a finding from a failure of the program."""

OF_CUDA = ("--kernel-name", "kns=sharpmask")
NAME = "compute-sanitizer"
SUMMARY = re.compile(r"=+ (?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)")

ALLOCATE = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
"""Else tensors are parts of larger allocations, and the tools do not see their ends."""

REHEARSED = ("triton", "gather_windows")


def steps(plan: Plan) -> list[Step]:
    works = [(b, op) for b in ("cuda", "triton") for op in registry.OPS if registry.backend(b).has(op)]
    if plan.rehearse:
        return [_step("rehearsal", *REHEARSED, (), ("--rehearse",), None)]
    program = shutil.which(NAME) or _beside_nvcc()
    obstacle = None if program else f"{NAME}, which comes with the CUDA toolkit, is not on the path"
    return [
        _step(tool, *work, (program or NAME, "--tool", tool, *options(work[0])), (), obstacle)
        for tool in TOOLS
        for work in works
    ]


def _beside_nvcc() -> str | None:
    folders = [os.environ.get("CUDA_HOME") or "/usr/local/cuda", os.path.dirname(shutil.which("nvcc") or "") + "/.."]
    return next(filter(None, (shutil.which(NAME, path=f"{folder}/bin") for folder in folders)), None)


def options(backend: str) -> tuple[str, ...]:
    own = OF_CUDA if backend == "cuda" else ()
    common = ("--error-exitcode", str(FOUND), "--target-processes", "application-only", "--report-api-errors", "no")
    return (*common, *own)


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
        return Result("failed", f"{reports} reports: {first.strip('= ')}", rows)
    return Result("failed", f"it could not run: exit status {status}", rows)

"""The report to paste into a bug report: ``python -m sharpmask_kernels.env`` prints versions, machine and backends.

With ``--check``, every backend that can run here is also compared with the reference. The exit status is then 1 if one
differs.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from . import dispatch, registry, self_check
from .backends import native
from .backends.cpu import device as cpu
from .backends.cpu import routes
from .machine import cpu_model
from .verdicts import DISTRIBUTIONS, version

VARIABLES = {
    "SHARPMASK_BACKEND": "preferred backends, best first, separated by commas",
    "SHARPMASK_NATIVE": "read at installation. auto: compile the C++ kernels if possible; 1: or fail; 0: do not",
    "SHARPMASK_CUDA": "the same for the CUDA kernels",
    "SHARPMASK_CUDA_ARCHS": "read at installation: the GPUs to compile for, as in 80;90, or native, or all",
    "SHARPMASK_ROUTES": "a table of `python -m sharpmask_kernels.tune`; shipped: the package's; off: none",
    "SHARPMASK_CPU_ISA": "baseline, avx2 or avx512, on Arm neon: the C++ kernels' instruction set, by default the best",
    "TRITON_INTERPRET": "1: Triton interprets its kernels, on the CPU",
    "OMP_NUM_THREADS": "threads on the CPU",
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sharpmask_kernels.env", description="A report for bug reports.")
    parser.add_argument("--check", action="store_true", help="also compare every backend with the reference")
    check = parser.parse_args(arguments).check
    print(report())
    if not check:
        return 0
    found = checks()
    print("\n" + table([("self-check", "device", "op", "result"), *found]))
    return int(any(result != "ok" for *_, result in found))


def report() -> str:
    variables = [(name, os.environ.get(name, "not set"), meaning) for name, meaning in VARIABLES.items()]
    backends = dispatch.available_backends()
    ops = [(op, *("yes" if registry.backend(name).has(op) else "-" for name in backends)) for op in registry.OPS]
    tables: list[list[tuple[str, ...]]] = [
        [*versions(), *machine(), *compiled_module(), *cuda_module()],
        [("variable", "value", "meaning"), *variables],
        [("backend", "state"), *backends.items()],
        [("op", *backends), *ops],
    ]
    return "\n\n".join(map(table, tables))


def table(rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells, each column as wide as its widest cell."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def versions() -> list[tuple[str, str]]:
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "ROCm" if torch.version.hip else "CPU only"
    return [
        *((name, version(name)) for name in DISTRIBUTIONS),
        ("Python", f"{platform.python_version()}, {sys.executable}"),
        ("torch", f"{torch.__version__}, {built}"),
        ("triton", version("triton")),
        ("numpy", version("numpy")),
    ]


def machine() -> list[tuple[str, str]]:
    # A container or batch system may leave a process fewer cores than there are.
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = f"{usable} of {os.cpu_count()} cores, {torch.get_num_threads()} torch threads"
    return [
        ("platform", platform.platform()),
        ("CPU", f"{cpu_model()}, {torch.backends.cpu.get_cpu_capability()}"),
        ("cores", cores),
        *((f"GPU {i}", gpu(i)) for i in range(torch.cuda.device_count())),
        ("GPU driver", first_line("/proc/driver/nvidia/version") or "none found"),
    ]


def gpu(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    return f"{properties.name}, {properties.major}.{properties.minor}, {properties.total_memory / 2**30:.0f} GiB"


def first_line(path: str) -> str:
    return Path(path).read_text().partition("\n")[0] if Path(path).exists() else ""


def compiled_module() -> list[tuple[str, str]]:
    if reason := cpu.unavailable():
        return [("compiled module", f"none: {reason}")]
    module = cpu.module()
    built = module.build_info()
    try:
        isa = f"{module.isa()}, of {built['isas']}"
    except ValueError as error:
        isa = str(error)
    return [
        ("compiled module", str(module.__file__)),
        ("compiled by", f"{built['compiler']}, {'with' if built['openmp'] else 'without'} OpenMP: {built['flags']}"),
        ("instruction set", isa),
        ("table of routes", table_of_routes()),
    ]


def table_of_routes() -> str:
    """Which table says how the refinement ops are computed here."""
    try:
        return routes.table().source
    except ValueError as error:  # of the instruction set
        return str(error)


def cuda_module() -> list[tuple[str, str]]:
    """Where there is one; the backends' table says why there is none."""
    loaded = native.load("_cuda")
    if isinstance(loaded, str):
        return []
    return [("CUDA module", str(loaded.__file__)), ("for GPUs of", native.built_for(loaded))]


def checks() -> list[tuple[str, str, str, str]]:
    """Backend, device, op and result, for all that can run here but the reference."""
    return [
        (name, str(device), op, result)
        for name, state in dispatch.available_backends().items()
        for device in registry.devices()
        if name != "reference" and state == "ready" and not registry.backend(name).refusal(device, torch.float32)
        for op, result in self_check.check(name, device).items()
    ]


if __name__ == "__main__":
    sys.exit(main())

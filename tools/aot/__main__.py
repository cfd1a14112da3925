"""Compiles the GPU kernels for GPUs that need not be here, and exits with 1 if a gate fails.

    python -m tools.aot [--quick] [--targets sm_90 ...] [--jobs 2]

Prints a table of the Triton kernels (gates: :mod:`tools.aot.triton`) and their roofline (:mod:`tools.aot.roofline`).
Where there is nvcc, and without --quick, the kernels of csrc/cuda are compiled and gated as well
(:mod:`tools.aot.cuda`). The whole takes some twenty minutes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys

from rich.console import Console

from sharpmask_kernels.backends.cuda import device as cuda_device
from sharpmask_kernels.backends.triton.device import INTERPRETED

from . import cuda, roofline, triton


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m tools.aot", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two targets, two levels, fp16 only")
    parser.add_argument("--targets", nargs="+", choices=triton.TARGETS, help="all, or two of them with --quick")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes that compile")
    given = parser.parse_args()
    if INTERPRETED:
        parser.error("TRITON_INTERPRET=1 is set: there is nothing to compile")
    given.cuda = shutil.which("nvcc") and not given.quick
    if given.cuda:
        try:
            cuda_device.module()
        except RuntimeError as error:
            parser.error(f"nvcc is here, so the kernels of csrc/cuda must be compiled too, but: {error}")
    return given


def main() -> int:
    given = options()
    targets = given.targets or list(triton.QUICK_TARGETS if given.quick else triton.TARGETS)
    found = triton.compile_all(list(triton.cases(targets, given.quick)), given.jobs)
    console = Console(width=None if sys.stdout.isatty() else 200)
    triton.report(found, console)
    roofline.report(console)
    count, faults = len(found), triton.faults(found) + roofline.faults()
    if given.cuda:
        cuda_count, cuda_faults = cuda.compiled(console)
        count, faults = count + cuda_count, faults + cuda_faults
    for fault in faults:
        print(fault)
    print(f"{count} kernels compiled, {len(faults)} faults")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())

"""Runs the contract and the tests of the CUDA kernels under several schedules of threads, and with addresses checked.

    python -m tests.emulator.schedules [--sanitized] [SCHEDULE ...]

A SCHEDULE is forward, reverse, or the seed of a shuffled one; by default both and the seeds 0, 1 and 2. With
--sanitized the kernels are compiled with AddressSanitizer and UndefinedBehaviorSanitizer. Exits with 1 if a test fails.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from . import NAMES, ROOT, build, sanitizers

SCHEDULES = (*NAMES, "0", "1", "2")
TESTS = ("tests/contract", "tests/kernels/test_cuda.py")
# The emulator's planted faults are programs with sanitizers of their own.
WHICH = "cuda and not planted"


def run(schedule: str, sanitized: bool = False) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SHARPMASK_EMULATOR_SCHEDULE": schedule}
    environment["SHARPMASK_EMULATOR"] = str(build(sanitized))
    if sanitized:
        environment |= sanitizers()
    # Not captured by pytest, or a sanitizer's last words would be lost.
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "--full", "-k", WHICH, *TESTS]
    return subprocess.run(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sanitized", action="store_true")
    parser.add_argument("schedules", metavar="SCHEDULE", nargs="*", default=SCHEDULES)
    options = parser.parse_args()
    failed = False
    for schedule in options.schedules:
        done = run(schedule, options.sanitized)
        failed |= done.returncode != 0
        print(done.stdout if done.returncode else f"{schedule}: {done.stdout.splitlines()[-1]}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

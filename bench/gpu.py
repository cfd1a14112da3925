"""``python -m bench.gpu``: everything that needs a GPU, in one report.

Runs the self-check, the tests marked gpu and the benches in fp32 and fp16, and writes what they print to
gpu-report.md (or the file given). Exits with 1 if one of them failed; the others run all the same.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

import torch

STEPS = [
    "-m sharpmask_kernels.env --check",
    "-m pytest -m gpu -q",
    "-m bench.compare --dtype fp32 --peer compile --markdown",
    "-m bench.compare --dtype fp16 --peer compile --markdown",
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, nargs="?", default=Path("gpu-report.md"))
    path = parser.parse_args().report
    if not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA or ROCm device")
    failed = []
    with path.open("w") as report:
        for step in STEPS:
            print(f"$ python {step}", flush=True)
            done = subprocess.run(
                [sys.executable, *shlex.split(step)],
                cwd=Path(__file__).parents[1],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
            # Tables in Markdown are read as such, all else as it was printed.
            fence = "" if "--markdown" in step else "```"
            report.write(f"## python {step}\n\n{fence}\n{done.stdout.strip()}\n{fence}\n\n")
            report.write(f"Exit status {done.returncode}.\n\n")
            report.flush()
            if done.returncode != 0:
                failed.append(step)
    print(f"{path} written" + "".join(f"\nfailed: python {step}" for step in failed))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())

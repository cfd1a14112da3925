"""``python -m bench.gpu``: everything that needs a GPU, in one report.

Runs the self-check, the tests marked gpu, and the benchmarks in fp32 and fp16 against eager PyTorch, torch.compile and,
where torch_tensorrt is installed, TensorRT. Writes what they print to gpu-report.md, or to the file given. A step that
fails does not stop the others, but makes the exit status 1.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

import torch

from . import tensorrt_peer

ROOT = Path(__file__).parents[1]
STEPS = [
    "-m sharpmask_kernels.env --check",
    "-m pytest -m gpu -q",
    "-m bench.compare --dtype fp32 --peer compile --markdown",
    "-m bench.compare --dtype fp16 --peer compile --markdown",
]
# One op at a time, so that an op whose layers TensorRT refuses does not hide the others.
TENSORRT = [
    f"-m bench.compare --dtype {dtype} --peer tensorrt --op {op} --markdown"
    for dtype in ("fp32", "fp16")
    for op in ("merge_upsample", "refine", "add_upsample", "refine_windows")
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, nargs="?", default=Path("gpu-report.md"))
    path = parser.parse_args().report
    if not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA or ROCm device")
    without_tensorrt = tensorrt_peer.missing()
    failed = []
    with path.open("w") as report:
        for step in STEPS if without_tensorrt else STEPS + TENSORRT:
            print(f"$ python {step}", flush=True)
            status, output = run(step)
            # Only output that is not Markdown needs a fence.
            fence = "" if "--markdown" in step else "```"
            report.write(f"## python {step}\n\n{fence}\n{output.strip()}\n{fence}\n\nExit status {status}.\n\n")
            report.flush()
            if status != 0:
                failed.append(step)
        if without_tensorrt:
            report.write(f"TensorRT was not measured: {without_tensorrt}.\n")
    print(f"{path} written" + "".join(f"\nfailed: python {step}" for step in failed))
    return bool(failed)


def run(step: str) -> tuple[int, str]:
    """The exit status of Python with these arguments, and what it printed."""
    command = [sys.executable, *shlex.split(step)]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    return done.returncode, done.stdout


if __name__ == "__main__":
    sys.exit(main())

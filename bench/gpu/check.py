"""``python -m bench.gpu.check BACKEND OP DEVICE FOLDER [--rehearse]``: the self-check of an op, with its duration.

The inputs of each case that fails are kept in FOLDER, in safetensors. The exit status is 1 if one does.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from sharpmask_kernels import self_check

from .failures import keep, tensors

REHEARSED = "gather_windows"


def main() -> int:
    backend, op, name, folder, *rest = sys.argv[1:]
    device = torch.device(name)
    if rest:
        from .rehearsal import prepare

        prepare()
    failed, start = 0, time.monotonic()
    for problem in self_check.problems(op, backend, device):
        failed += 1
        print(f"{op}: {problem.told}", flush=True)
        path = Path(folder, f"self-check-{backend}-{op}-{failed}.safetensors")
        keep(path, tensors(list(problem.inputs), "input"), problem.told)
    print(f"{failed} failed, {time.monotonic() - start:.1f} s with compiling")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())

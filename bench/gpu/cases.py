"""``python -m bench.gpu.cases BACKEND OP [--rehearse]``: every case of the self-check and dtype, without comparing.

For compute-sanitizer: besides an op's kernels, forward and backward, next to nothing runs on the device.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from sharpmask_kernels import registry, self_check


def main() -> int:
    backend, op, *rest = sys.argv[1:]
    device = torch.device("cpu" if rest else "cuda")
    if rest:
        from .rehearsal import prepare

        prepare()
    generator = torch.Generator().manual_seed(0)
    ran = 0

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    for _, case in self_check.cases(op, random, device):
        for dtype in self_check.TOLERANCE:
            if not registry.backend(backend).refusal(device, dtype):
                # Cast where they are made: nothing but the op's own kernels runs on the device.
                inputs = [x.cpu().to(dtype).to(device) for x in case.inputs]
                self_check.outcome(case, backend, inputs)
                ran += 1
    if device.type == "cuda":
        torch.cuda.synchronize()
    print(f"{ran} cases of {op} ran on {backend}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

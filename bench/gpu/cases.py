"""``python -m bench.gpu.cases BACKEND OP [--rehearse]``: every case of the self-check and dtype, without comparing;
in a rehearsal one.

For compute-sanitizer: besides an op's kernels, forward and backward, next to nothing runs on the device.
"""

from __future__ import annotations

import itertools
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

    chosen = itertools.product(self_check.cases(op, random, device), self_check.TOLERANCE)
    for (_, case), dtype in itertools.islice(chosen, 1 if rest else None):
        if not registry.backend(backend).refusal(device, dtype):
            # Cast where they are made: nothing but the op's own kernels runs on the device.
            self_check.outcome(case, backend, [x.to(dtype).to(device) for x in case.inputs])
            ran += 1
    if device.type == "cuda":
        torch.cuda.synchronize()
    print(f"{ran} cases of {op} ran on {backend}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

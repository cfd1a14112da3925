"""How much memory the ops take beyond their inputs and outputs."""

from __future__ import annotations

import ctypes
import functools
import threading
from argparse import Namespace
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from .workloads import FULL, LEVELS, SMALL, refine_windows, refinement


class _Mallinfo2(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")),
        *((name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")),
    ]


def heap() -> int:
    """Bytes that are allocated now. Raises ``RuntimeError`` without glibc 2.33 or later."""
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        raise RuntimeError("only glibc 2.33 and later tell how much is allocated") from None
    mallinfo2.restype = _Mallinfo2
    info = mallinfo2()
    return int(info.uordblks + info.hblkhd)  # in arenas, and in mappings of their own


def extra(run: Callable[[], Any]) -> int:
    """The most bytes allocated at one time during ``run``, sampled every millisecond.

    ``run`` must release Python's lock while it computes, as the kernels do, or nothing is seen.
    """
    peak = 0
    done = threading.Event()

    def look() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, heap())

    looking = threading.Thread(target=look)
    looking.start()
    before = heap()
    try:
        run()
    finally:
        done.set()
        looking.join()
    return peak - before


def saved(run: Callable[[], Any], given: Iterable[Tensor]) -> int:
    """Bytes that the result of ``run`` keeps for its backward pass, each once, without the tensors ``given``."""
    storages: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        result = run()
    for x in given:
        storages.pop(x.untyped_storage().data_ptr(), None)
    del result  # held until here, so that no memory is used twice
    return sum(storages.values())


def extra_of_refine_windows(count: int, photo: tuple[int, int], backend: str | None) -> int:
    """Bytes that one call allocates beyond its output. ``backend`` None: plain PyTorch."""
    workload = refine_windows.workload(count, photo)
    module = workload.module(torch.device("cpu")).requires_grad_(False)
    inputs = workload.inputs(torch.randn)

    def run() -> object:
        return module.op(backend, *inputs) if backend else module(*inputs)

    run()  # allocates the output
    return max(extra(run) for _ in range(3))


def saved_by_refine(batch: int, backend: str | None) -> int:
    """Bytes that the four modules keep for their backward pass. ``backend`` None: plain PyTorch."""
    kept = 0
    for level in range(len(LEVELS)):
        workload = refinement.workload("refine", level, batch)
        module = workload.module(torch.device("cpu"))
        inputs = [x.requires_grad_() for x in workload.inputs(torch.randn)]
        run = functools.partial(module.op, backend) if backend else module
        kept += saved(functools.partial(run, *inputs), [*inputs, *module.parameters()])
    return kept


def table(options: Namespace, conditions: str) -> list[list[str]]:
    """Memory of the cpu backend and of eager PyTorch, in fp32."""
    sizes = SMALL if options.small else FULL
    count = sizes.windows[-1]
    extras = [extra_of_refine_windows(count, sizes.photo, name) for name in ("cpu", None)]
    kept = [saved_by_refine(sizes.batch, name) for name in ("cpu", None)]
    works = {
        f"refine_windows, {count} windows, beyond its output": extras,
        f"refine, all levels, batch {sizes.batch}, kept for backward beyond inputs and parameters": kept,
    }
    rows = [[work, *(f"{taken / 1e6:.2f} MB" for taken in bytes_)] for work, bytes_ in works.items()]
    return [[f"memory, {conditions}", "ours", "eager PyTorch"], *rows]

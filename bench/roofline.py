"""How fast this machine could be at best, measured: multiply-adds of an instruction set, and copies of memory."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]

REPEATS = 10
"""The best of so many counts: a peak is what the machine can do, not what it does while others work."""

ROUNDS = 2_000_000
"""Of multiply-adds: some hundredths of a second."""

COPIED = 1 << 28
"""Bytes, more than caches hold."""


class Cost(NamedTuple):
    """What a workload cannot do without."""

    flops: int
    """Of its convolutions as plain PyTorch computes them; a multiply-add counts as two."""
    bytes: int
    """Of inputs, parameters and result and, in training, of their gradients, each once."""


class Peak(NamedTuple):
    flops: float
    """Of fp32 multiply-adds, a second."""
    bytes: float
    """Read and written by copying, a second."""

    def share(self, cost: Cost, seconds: float) -> str:
        """How near to the peak that bounds it a workload comes which takes so many seconds."""
        arithmetic, memory = cost.flops / self.flops / seconds, cost.bytes / self.bytes / seconds
        return f"{arithmetic:.0%} of arithmetic" if arithmetic > memory else f"{memory:.0%} of memory"

    def __str__(self) -> str:
        return f"{self.flops / 1e9:.0f} GFLOP/s of fp32 multiply-adds, {self.bytes / 1e9:.1f} GB/s of copies"


def cost(flops: int, tensors: Iterable[Any]) -> Cost:
    return Cost(flops, sum(map(size, tensors)))


def size(x: Any) -> int:
    """Bytes of a tensor, a list of them, or of run lengths. Masks count as bits."""
    if isinstance(x, Tensor):
        return x.nbytes // 8 if x.dtype == torch.bool else x.nbytes
    return len(x["counts"]) if isinstance(x, dict) else sum(map(size, x))


def measure(isa: str, threads: int) -> Peak:
    """The peak with an instruction set of csrc. Raises ``RuntimeError`` where there is no compiler to ask it with."""
    with tempfile.TemporaryDirectory() as folder:
        library = compiled(isa, Path(folder))
        run = partial(library.multiply_adds, ROUNDS)
        with ThreadPoolExecutor(threads) as pool:
            # ctypes lets other threads run meanwhile.
            best = fastest(lambda: [done.result() for done in [pool.submit(run) for _ in range(threads)]])
        operations = threads * ROUNDS * library.operations()
    source = torch.ones(COPIED // 4)
    copy = torch.empty_like(source)
    return Peak(operations / best, 2 * COPIED / fastest(lambda: copy.copy_(source)))


def fastest(run: Callable[[], object]) -> float:
    """Seconds of the fastest run."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def compiled(isa: str, folder: Path) -> ctypes.CDLL:
    """multiply_adds.cpp for an instruction set."""
    toolchain = _toolchain()
    path = folder / "multiply_adds.so"
    try:
        compiler = toolchain.find_compiler()
        flags = toolchain.find_isas(compiler)[isa]
        define = f"-DSHARPMASK_ISA={isa}"
        source = Path(__file__).with_name("multiply_adds.cpp")
        shared = ["-std=c++17", "-O3", "-ffp-contract=off", "-fPIC", "-shared"]
        toolchain.run([*compiler, *shared, *flags, define, f"-I{ROOT / 'csrc'}", str(source), "-o", str(path)])
    except (toolchain.BuildError, KeyError) as error:
        raise RuntimeError(f"the peak of {isa} is not known: {error}") from error
    library = ctypes.CDLL(str(path))
    library.operations.restype = ctypes.c_int64
    library.multiply_adds.restype, library.multiply_adds.argtypes = ctypes.c_float, [ctypes.c_int64]
    return library


def _toolchain() -> ModuleType:
    """csrc/toolchain.py, which no package holds."""
    spec = importlib.util.spec_from_file_location("toolchain", ROOT / "csrc" / "toolchain.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # for its annotations
    spec.loader.exec_module(module)
    return module

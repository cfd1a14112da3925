"""Compiles the CUDA kernels for GPUs that need not be here, and gates what nvcc makes of them.

    python -m tools.aot.cuda [--archs 80 90a 100]

Needs nvcc, and cuobjdump from the CUDA toolkit or from triton. Prints a table and, for `refine_windows` on the paper's
windows, the least time that arithmetic and memory take, with an estimate. Exits with 1 if a gate fails:

- nothing is spilled;
- `refine_windows` runs with at least two blocks on a multiprocessor of compute capability 9.0, its matrix form with
  three, and with matrix instructions;
- `refine_windows`, and `gather_windows` in channels_last, load maps 128 bits at a time. The loads counted are those of
  load_map in csrc/cuda/device.cuh, which look different from all others; tests/kernels/test_cuda.py counts how many of
  them run.
"""

from __future__ import annotations

import argparse
import functools
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

CSRC = Path(__file__).parents[2] / "csrc"
OPS = ("gather_windows", "refine_windows", "encode_windows")
FLAGS = ["-std=c++17", "-O3", "--expt-relaxed-constexpr"]  # of setup.py

KB = 1 << 10
# Shared memory in bytes, of a block and of a multiprocessor.
SHARED = {75: (64, 64), 80: (163, 164), 86: (99, 100), 89: (99, 100), 90: (227, 228), 100: (227, 228), 120: (99, 100)}
SHARED = {arch: (block * KB, all_blocks * KB) for arch, (block, all_blocks) in SHARED.items()}
REGISTERS = 1 << 16  # of a multiprocessor
RESIDENT = {75: 1024, 86: 1536, 89: 1536, 120: 1536}  # threads of a multiprocessor; 2048 elsewhere
RESERVED = KB  # of shared memory, for each block
THREADS = 256  # of a block, in every kernel with a limit

# The paper's top-down pass: windows of 160 pixels, k = 32, 16, 8, 4, 2 (section 3.2).
SIDES, WIDTHS = (10, 20, 40, 80, 160), (32, 16, 8, 4, 2)
OUT_CHANNELS = (*WIDTHS[1:], 1)
FMAS = sum(9 * a * b * side * side for a, b, side in zip(WIDTHS, OUT_CHANNELS, SIDES, strict=True))
HORIZONTALS = sum(k * side**2 for k, side in zip(WIDTHS[1:], SIDES, strict=False))


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel.

    ``loads`` counts the instructions that load from maps, by bits. ``inner`` is the number of instructions in the loop
    with most multiply-adds, and the number of these.
    """

    name: str
    arch: str
    registers: int
    spills: int
    instructions: int
    fmas: int
    matrix: int
    inner: tuple[int, int]
    loads: dict[int, int]
    shared: int
    blocks: int

    def faults(self) -> Iterator[str]:
        if self.spills:
            yield f"{self.spills} bytes spilled"
        least = 3 if "refine_matrix" in self.name else 2 if "refine_kernel" in self.name else 0
        if self.arch.startswith("90") and self.blocks < least:
            yield f"{self.blocks} blocks on a multiprocessor, must be at least {least}"
        if "refine_matrix" in self.name and not self.matrix:
            yield "no matrix instruction"
        for bits, least in self.least_loads().items():
            if self.loads.get(bits, 0) < least:
                yield f"{self.loads.get(bits, 0)} loads of maps of {bits} bits, must be at least {least}"

    def least_loads(self) -> dict[int, int]:
        if "gather_kernel<uint4" in self.name:
            return {128: 1}
        if "refine_kernel<" not in self.name:
            return {}
        # For each of two kinds of layers: tiles of eight outputs add a run of eight or two of four, others one of four.
        return {128: 2 * (2 + 2 + 1)} if "<float" in self.name else {128: 2 * 1, 64: 2 * (2 + 1)}


def _tool(name: str) -> str:
    if path := shutil.which(name):
        return path
    import triton

    path = str(getattr(triton.knobs.nvidia, name).path)
    return path


def _run(*command: str) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True).stdout


@functools.cache
def plan(arch: int) -> dict[str, Any]:
    """How the paper's top-down pass lies in shared memory, with padding_mode="replicate"."""
    from sharpmask_kernels import _cuda

    convs = [1] * len(WIDTHS[1:])
    modes = {"nearest": False, "zeros": False}
    top_down_pass = _cuda.TopDownPass(
        size=SIDES[0], channels=WIDTHS[0], convs=convs, out_channels=OUT_CHANNELS, **modes
    )
    per_block, per_multiprocessor = SHARED[arch]
    return {
        **_cuda.refine_windows_footprint(
            top_down_pass, shared_per_block=per_block, shared_per_multiprocessor=per_multiprocessor
        )
    }


ARCHS = ("80", "90a", "100")


def rows(archs: tuple[str, ...] = ARCHS) -> Iterator[Kernel]:
    """Every kernel, compiled for every architecture."""
    with tempfile.TemporaryDirectory() as folder:
        for arch in archs:
            for op in OPS:
                cubin = f"{folder}/{op}.{arch}.cubin"
                source = str(CSRC / "cuda" / f"{op}.cu")
                log = _run("nvcc", *FLAGS, f"-arch=sm_{arch}", "-Xptxas=-v", "-cubin", source, "-o", cubin)
                yield from _read(arch, log, _run(_tool("cuobjdump"), "-sass", cubin))


def _read(arch: str, log: str, code: str) -> Iterator[Kernel]:
    usage = re.compile(r"entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+)", re.S)
    resources = {name: (int(regs), int(a) + int(b)) for name, a, b, regs in usage.findall(log)}
    for part in code.split("Function : ")[1:]:
        symbol = part.split()[0]
        line = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9_.]+)(.*?);", re.M)
        addresses, opcodes, operands = zip(*line.findall(part), strict=True)
        loads = Counter(
            int((re.search(r"\.(?:U|S)?(16|64|128)\b", o) or [0, 32])[1])
            for o in _starting(opcodes, "LDG")
            if "CONSTANT" in o  # for __ldg
        )
        registers, spills = resources[symbol]
        name = _run("c++filt", symbol).strip().replace("sharpmask::cuda::", "").replace("sharpmask::", "")
        capability = int(arch.rstrip("af"))
        shared = 0
        if "refine_kernel" in name or "refine_matrix" in name:
            shared = plan(capability)["matrix_bytes" if "matrix" in name else "shared_bytes"]
        blocks = min(RESIDENT.get(capability, 2048), REGISTERS // (-(-registers // 8) * 8)) // THREADS
        if shared:
            blocks = min(blocks, SHARED[capability][1] // (shared + RESERVED))
        yield Kernel(
            name=re.sub(r"^void |\(.*", "", name),
            arch=arch,
            registers=registers,
            spills=spills,
            instructions=len(opcodes),
            fmas=len(_starting(opcodes, "FFMA")),
            matrix=len(_starting(opcodes, "HMMA", "HGMMA", "UTCHMMA")),
            inner=_inner_loop([int(a, 16) for a in addresses], opcodes, operands),
            loads=dict(loads),
            shared=shared,
            blocks=blocks,
        )


def _starting(opcodes: Sequence[str], *names: str) -> list[str]:
    return [o for o in opcodes if o.startswith(names)]


def _inner_loop(addresses: list[int], opcodes: Sequence[str], operands: Sequence[str]) -> tuple[int, int]:
    """The numbers of instructions and multiply-adds in the innermost loop with most multiply-adds."""
    loops = []
    for last, (opcode, operand) in enumerate(zip(opcodes, operands, strict=True)):
        target = re.search(r"0x([0-9a-f]+)", operand)
        if opcode.startswith("BRA") and target and int(target[1], 16) < addresses[last]:
            loops.append((addresses.index(int(target[1], 16)), last))
    inner = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    counts = [(last + 1 - first, len(_starting(opcodes[first : last + 1], "FFMA"))) for first, last in inner]
    return max(counts, key=lambda count: (count[1], count[0]), default=(0, 0))


def report(kernels: list[Kernel], console: Console) -> None:
    table = Table(
        title="CUDA kernels, compiled ahead of time (shared: for the paper's top-down pass; 128b to 16b: loads of maps)"
    )
    columns = "kernel arch reg spills instr FFMA HMMA 128b 64b 32b 16b shared blocks"
    for column in columns.split():
        table.add_column(column, justify="left" if column == "kernel" else "right", overflow="fold")
    for k in sorted(kernels, key=lambda k: (k.name, k.arch)):
        loads = [k.loads.get(bits, 0) for bits in (128, 64, 32, 16)]
        cells = [k.name, k.arch, k.registers, k.spills, k.instructions, k.fmas, k.matrix, *loads, k.shared]
        table.add_row(*map(str, [*cells, k.blocks]), style="red" if list(k.faults()) else None)
    console.print(table)


def floor(console: Console, inner: tuple[int, int], windows: int = 1000) -> None:
    """The time of `windows` of the paper's windows on an H100 SXM (132 multiprocessors, 1.98 GHz, 3.35 TB/s), on paper.

    ``inner``: of refine_kernel, as in :class:`Kernel`.
    """
    multiprocessors, hertz, bandwidth = 132, 1.98e9, 3.35e12
    fma_rate = multiprocessors * 128 * hertz
    dram, l2 = 160 * 160 // 8 + 2 * 3200, 2 * HORIZONTALS  # of a window: bits out, 16-bit encodings and maps
    flops = 2 * FMAS * windows
    found = plan(90)
    # The plan counts few instructions besides multiply-adds. A multiprocessor issues four warp instructions a clock, a
    # warp has as many as each of its threads.
    instructions = found["instructions"] * inner[0] // inner[1]
    cycles = instructions * THREADS / 32 / 4
    console.print(
        f"refine_windows, {windows} windows of 160 pixels on an H100, on paper, nothing of it measured:\n"
        f"  arithmetic {flops / 1e9:.1f} GFLOP: {flops / 2 / fma_rate * 1e6:.0f} us at peak\n"
        f"  memory {dram * windows / 1e6:.1f} MB from and to DRAM (bits out; maps stay in L2): "
        f"{dram * windows / bandwidth * 1e6:.0f} us; {l2 * windows / 1e6:.0f} MB from L2\n"
        f"  estimate {instructions} instructions a thread and window, {inner[0]} for {inner[1]} multiply-adds in the "
        f"inner loop, all issued without a wait: {cycles * windows / multiprocessors / hertz * 1e6:.0f} us\n"
        f"  shared memory {found}"
    )


def compiled(console: Console, archs: tuple[str, ...] = ARCHS) -> tuple[int, list[str]]:
    """Prints the tables; returns how many kernels there are, and the gates that fail."""
    kernels = list(rows(archs))
    report(kernels, console)
    floor(console, next(k.inner for k in kernels if k.name == "refine_kernel<float>"))
    return len(kernels), [f"{k.name}, sm_{k.arch}: {fault}" for k in kernels for fault in k.faults()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", nargs="+", default=list(ARCHS), help="compute capabilities")
    archs = tuple(parser.parse_args().archs)
    count, faults = compiled(Console(width=None if sys.stdout.isatty() else 180), archs)
    for fault in faults:
        print(fault)
    print(f"{count} kernels compiled, {len(faults)} faults")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())

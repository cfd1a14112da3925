"""Compiles the Triton kernels for GPUs that need not be here and reads what the compiler made of them.

    python -m tools.aot [--quick] [--targets sm_90 ...] [--jobs 2]

The backend's own functions are called on tensors without memory, so what is compiled is what a GPU would run: every
kernel, every configuration that autotune chooses from, specialised as at run time. Prints a table and the roofline of
:mod:`tools.aot.roofline`, and exits with 1 if a gate fails:

- nothing is spilled;
- the matrix unit is used: in 16 bit always, in fp32 as three products in tf32 (NVIDIA) or as exact ones (AMD), never
  as one in tf32;
- a map in channels_last is loaded at least 64 bits at a time, or a whole pixel where that has less;
- the first configuration of each kernel fits into shared memory (autotune drops others that do not);
- ``merge_upsample`` moves at most 1.5 times the bytes that any implementation must.

Where there is nvcc, and without --quick, the kernels of csrc/cuda are compiled and gated as well: see
:mod:`tools.aot.cuda`. The whole takes some twenty minutes.
"""

from __future__ import annotations

import argparse
import ast
import functools
import itertools
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction

from sharpmask_kernels.backends.cuda import device as cuda_device
from sharpmask_kernels.backends.triton import device, gather_windows, refinement

from . import cuda, roofline
from .roofline import LEVELS, Level

KERNELS = Path(device.__file__).parent / "kernels"


@dataclass(frozen=True)
class Target:
    """A GPU, and what one of its multiprocessors (compute units) has."""

    gpu: GPUTarget
    shared: int  # bytes, for one block
    shared_all: int  # bytes, for all blocks together
    registers: int  # 32-bit, for one lane of each scheduler's warps together
    warps: int  # resident


TARGETS = {
    "sm_80": Target(GPUTarget("cuda", 80, 32), 163 << 10, 164 << 10, 512, 64),
    "sm_90": Target(GPUTarget("cuda", 90, 32), 227 << 10, 228 << 10, 512, 64),
    "sm_100": Target(GPUTarget("cuda", 100, 32), 227 << 10, 228 << 10, 512, 64),
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), 64 << 10, 64 << 10, 512, 32),
}

QUICK_TARGETS = ("sm_90", "gfx942")
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


# What to compile.


def maps(level: Level, dtype: torch.dtype, *channels: int, scale: int = 1) -> list[Tensor]:
    """Channels_last maps of the batch 32, without memory."""
    side = level.side * scale
    return [_meta(dtype, 32, c, side, side) for c in channels]


def _meta(dtype: torch.dtype, *shape: int) -> Tensor:
    x = torch.empty(shape, dtype=dtype, device="meta")
    return x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x


def compile_refinement(level: Level, dtype: torch.dtype, upsample: str, padding_mode: str) -> None:
    """All launches of the refinement ops at one level, forward and backward."""
    skip, mask, feature = maps(level, dtype, level.skip, level.mask, level.feature)
    out, horizontal = maps(level, dtype, level.out, scale=2) + maps(level, dtype, level.out)
    skip_weight, skip_bias = _meta(dtype, level.skip, level.feature, 3, 3), _meta(dtype, level.skip)
    weight, bias = _meta(dtype, level.out, level.skip + level.mask, 3, 3), _meta(dtype, level.out)
    half = _meta(dtype, level.out, level.mask, 3, 3)
    active = torch.empty((32, level.out, level.side, -(-level.side // 8)), dtype=torch.uint8, device="meta")
    modes = (upsample, padding_mode)
    refinement.refine(feature, mask, skip_weight, skip_bias, weight, bias, *modes, True)
    refinement.add_upsample(horizontal, mask, half, bias, *modes, True)
    refinement.refine_backward(out, active, skip, feature, mask, skip_weight, weight, *modes, True, [True] * 6)
    refinement.add_upsample_backward(out, active, mask, half, *modes, True, [True] * 4)


def compile_gathering(level: Level, dtype: torch.dtype) -> None:
    (horizontal,) = maps(level, dtype, level.out)
    index = torch.empty(1000, dtype=torch.int64, device="meta")
    side = level.side
    windows = gather_windows.gather_windows([horizontal], index, index, index, index, side, side // 10)
    places = (index, index, index, index)
    gather_windows.gather_windows_backward(windows, *places, 32, [side], [side], True, [True], side // 10)


Case = tuple[str, int, str, str, str]  # target, level, dtype, upsample, padding_mode


def cases(targets: list[str], quick: bool) -> Iterator[Case]:
    if quick:  # the widest and the narrowest channels
        yield from itertools.product(targets, (1, 4), ("fp16",), ("bilinear",), ("replicate",))
        return
    yield from itertools.product(targets, LEVELS, DTYPES, ("bilinear",), ("replicate",))
    yield from itertools.product(targets, LEVELS, ("fp16",), ("nearest",), ("zeros",))


# Compiling without a GPU.


@dataclass(frozen=True)
class Compiled:
    """A kernel in one specialisation and configuration, and what was found in its machine code."""

    kernel: str
    case: Case
    config: str
    first: bool  # what autotune takes when pinned
    warps: int
    registers: int
    spills: int
    shared: int
    matrix: int  # instructions of the matrix unit
    loads: dict[int, int]  # instructions by the bits that a lane loads
    instructions: int
    narrow: tuple[str, ...]  # maps loaded too narrowly
    precision: str | None  # what is wrong with the products in fp32

    @property
    def name(self) -> str:
        return f"{self.kernel} {' '.join(map(str, self.case))} {self.config}"

    @property
    def occupancy(self) -> int:
        """Resident warps, of TARGETS[...].warps."""
        target = TARGETS[self.case[0]]
        schedulers = 4
        per_scheduler = target.registers // max(8 * -(-self.registers // 8), 1)
        by_registers = schedulers * min(per_scheduler, target.warps // schedulers) // self.warps
        blocks = min(by_registers, target.shared_all // max(self.shared, 1), target.warps // self.warps)
        return blocks * self.warps

    def faults(self) -> list[str]:
        dtype = self.case[2]
        faults = [f"{name} is loaded less than 64 bits at a time" for name in self.narrow]
        if self.spills:
            faults.append(f"{self.spills} spills")
        if self.first and self.shared > TARGETS[self.case[0]].shared:
            faults.append(f"{self.shared} bytes of shared memory")
        if self.precision:
            faults.append(self.precision)
        if self.matrix == 0 and _multiplies(self.kernel) and dtype != "fp32":
            faults.append("no instructions of the matrix unit")
        return faults


def _multiplies(kernel: str) -> bool:
    return kernel in ("conv3x3.conv_relu", "conv3x3.input_gradient", "conv3x3.weight_gradient", "upsample.forward")


class _Driver:
    """As much of a driver as compiling needs."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return [t.gpu for t in TARGETS.values()].index(self.target)  # what triton's cache goes by

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_case(case: Case) -> list[Compiled]:
    """Everything that the ops launch in ``case``."""
    name, level, dtype, upsample, padding_mode = case
    target = TARGETS[name]
    triton.runtime.driver.set_active(_Driver(target.gpu))
    found: dict[str, Compiled] = {}
    compile_only = JITFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, first: bool = True, **kwargs: Any) -> None:
        kernel = compile_only(self, *args, grid=grid, warmup=True, **kwargs)
        compiled = inspect(kernel, self, kwargs, case, first)
        found[f"{compiled.name} {kernel.hash}"] = compiled

    def tune(self: Any, *args: Any, **kwargs: Any) -> None:
        for i, config in enumerate(self.configs):
            self.fn.run(*args, **{**kwargs, **config.all_kwargs()}, first=i == 0)

    hip = "6" if target.gpu.backend == "hip" else None
    with (
        mock.patch.object(JITFunction, "run", run),
        mock.patch.object(Autotuner, "run", tune),
        mock.patch.object(torch.version, "hip", hip),
    ):
        compile_refinement(LEVELS[level], DTYPES[dtype], upsample, padding_mode)
        compile_gathering(LEVELS[level], DTYPES[dtype])
    return list(found.values())


# Reading machine code.


def inspect(kernel: Any, function: Any, constants: dict[str, Any], case: Case, first: bool) -> Compiled:
    nvidia = "cubin" in kernel.asm
    found = _read_nvidia(kernel) if nvidia else _read_amd(kernel)
    config = f"{constants['PIXELS']}px " if "PIXELS" in constants else ""
    metadata = kernel.metadata
    module = function.fn.__module__.rpartition(".")[2]
    return Compiled(
        kernel=f"{module}.{function.fn.__name__}",
        case=case,
        config=f"{config}{metadata.num_warps}w {metadata.num_stages}s",
        first=first,
        warps=metadata.num_warps,
        shared=metadata.shared,
        narrow=tuple(_narrow(kernel.asm["ptx" if nvidia else "amdgcn"], constants, DTYPES[case[2]].itemsize)),
        precision=_precision(kernel, nvidia) if case[2] == "fp32" else None,
        **found,
    )


def _tool(name: str, *arguments: str) -> str:
    path = getattr(triton.knobs.nvidia, name).path
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout


def _read_nvidia(kernel: Any) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        code = _tool("nvdisasm", "-c", file.name)
    opcodes = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9_.]+)", code, re.M)
    loads: Counter[int] = Counter()
    for opcode in opcodes:
        if opcode.startswith(("LDG", "LDGSTS")) and not opcode.startswith("LDGDEPBAR"):
            width = re.search(r"\.(U?8|U?16|S8|S16|64|128)\b", opcode)
            loads[int(width[1].lstrip("US")) if width else 32] += 1
    registers = re.search(r"REG:(\d+)", usage)
    assert registers
    return {
        "registers": int(registers[1]),
        "spills": sum(o.startswith(("STL", "LDL")) for o in opcodes),
        "matrix": sum(o.startswith(("HMMA", "HGMMA", "UTCHMMA")) for o in opcodes),
        "loads": dict(loads),
        "instructions": len(opcodes),
    }


AMD_WIDTHS = {"ubyte": 8, "sbyte": 8, "ushort": 16, "short": 16, "dword": 32}
AMD_WIDTHS |= {"dwordx2": 64, "dwordx3": 96, "dwordx4": 128}
AMD_LOAD = re.compile(r"(?:buffer|global)_load_(?:lds_)?(dwordx[234]|dword|[us]byte|u?short)")


def _read_amd(kernel: Any) -> dict[str, Any]:
    code = kernel.asm["amdgcn"]

    def count(field: str) -> int:
        return int(re.search(rf"\.{field}:\s*(\d+)", code)[1])  # type: ignore[index]

    loads = Counter(AMD_WIDTHS[width] for width in AMD_LOAD.findall(code))
    return {
        "registers": count("vgpr_count") + count("agpr_count"),
        "spills": count("vgpr_spill_count") + count("sgpr_spill_count"),
        "matrix": len(re.findall(r"^\s+v_mfma", code, re.M)),
        "loads": dict(loads),
        "instructions": len(re.findall(r"^\s+[a-z]+_[a-z0-9_]+ ", code, re.M)),
    }


def _precision(kernel: Any, nvidia: bool) -> str | None:
    """What is wrong with the products of fp32 numbers, or None."""
    dots = kernel.asm["ttir"].count("tt.dot ")
    if not nvidia:
        plain = re.search(r"v_mfma\w*xf32", kernel.asm["amdgcn"])
        return "products in xf32" if plain else None
    ptx = kernel.asm["ptx"]
    single = len(re.findall(r"(?:mma|wgmma|tcgen05)\S*tf32", ptx))
    if dots and (kernel.asm["ttir"].count("inputPrecision = tf32x3") != dots or single == 0 or single % 3):
        return f"{single} tf32 instructions: not three products for one"
    return None


PIXEL = {
    "a": ("A", "CHANNELS"),  # conv_relu gives its one map as a
    "b": ("B",),
    "addend": ("OUT",),
    "map": ("C",),
    "grad": ("C", "OUT"),
    "relu": ("SPLIT",),
}
"""The constants, whichever a kernel has, that count the channels of the map behind ``<name>_ptr``."""


@functools.cache
def map_loads(source: str) -> dict[int, str]:
    """The lines of a kernel file that load from a map, and the map's name."""
    found = {}
    for node in ast.walk(ast.parse((KERNELS / source).read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "tl.load":
            names = [n.id.removesuffix("_ptr") for n in ast.walk(node.args[0]) if isinstance(n, ast.Name)]
            for name in names:
                if name in PIXEL:
                    found[node.lineno] = name
    return found


def _narrow(code: str, constants: dict[str, Any], itemsize: int) -> Iterator[str]:
    """Maps of which a lane loads less than 64 bits at a time, and less than a pixel.

    Machine code names no map, but each load follows a comment with the line of the kernel that it comes from.
    """
    loaded: dict[str, int] = {}
    name = None
    for line in code.splitlines():
        if place := re.search(r"\.loc\b.*?(\w+\.py):(\d+):\d+", line):
            known = (KERNELS / place[1]).exists()
            name = map_loads(place[1]).get(int(place[2])) if known else None
        elif name and (width := _load_bits(line)):
            loaded[name] = min(loaded.get(name, 128), width)
    for name, width in loaded.items():
        pixel = next(constants[c] for c in PIXEL[name] if c in constants) * itemsize * 8
        # A pixel of 6 channels begins at even channels only: no wider than what divides it.
        if width < min(64, pixel & -pixel):
            yield name


def _load_bits(line: str) -> int | None:
    """Bits that one lane loads from global memory in this line of PTX or AMD assembly, if it does."""
    if copied := re.search(r"cp\.async\.c[ag]\.shared\.global.*?, (0x[0-9a-f]+|\d+)[,;]", line):
        return 8 * int(copied[1], 0)
    if loaded := re.search(r"ld\.global\S*?(?:\.v(\d))?\.[bufs](\d+)\b", line):
        return int(loaded[1] or 1) * int(loaded[2])
    if loaded := AMD_LOAD.search(line):
        return AMD_WIDTHS[loaded[1]]
    return None


# The report.


def report(found: list[Compiled], console: Console) -> None:
    columns = "kernel target level dtype modes config reg spills shared matrix 128b 64b 32b <32b instr warps"
    table = Table(title="Kernels, compiled ahead of time")
    for column in columns.split():
        table.add_column(column, justify="left" if column in ("kernel", "target", "modes", "config") else "right")
    for c in sorted(found, key=lambda c: (c.case, c.kernel, not c.first)):
        target, level, dtype, upsample, padding_mode = c.case
        shared = f"{c.shared}{'' if c.shared <= TARGETS[target].shared else ' (dropped)'}"
        narrow = sum(n for bits, n in c.loads.items() if bits < 32)
        wide = [c.loads.get(bits, 0) for bits in (128, 64, 32)]
        cells = [c.kernel, target, level, dtype, f"{upsample} {padding_mode}", c.config, c.registers, c.spills, shared]
        cells += [c.matrix, *wide, narrow, c.instructions, f"{c.occupancy}/{TARGETS[target].warps}"]
        table.add_row(*map(str, cells), style="red" if c.faults() else None)
    console.print(table)


def check(found: list[Compiled]) -> list[str]:
    """The gates that fail."""
    faults = [f"{c.name}: {fault}" for c in found for fault in c.faults()]
    return faults + roofline.faults()


def compile_all(todo: list[Case], jobs: int, compile_one: Callable[[Case], list[Compiled]]) -> list[Compiled]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        cases = track(pool.map(compile_one, todo), "compiling", len(todo), console=Console(stderr=True), transient=True)
        return list(itertools.chain.from_iterable(cases))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two targets, two levels, fp16 only")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, help="all, or two of them with --quick")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes that compile")
    options = parser.parse_args()
    if device.INTERPRETED:
        parser.error("TRITON_INTERPRET=1 is set: there is nothing to compile")
    with_cuda = shutil.which("nvcc") and not options.quick
    if with_cuda:
        try:
            cuda_device.module()
        except RuntimeError as error:
            parser.error(f"there is nvcc, so the kernels of csrc/cuda are due, too, but: {error}")
    targets = options.targets or list(QUICK_TARGETS if options.quick else TARGETS)
    found = compile_all(list(cases(targets, options.quick)), options.jobs, compile_case)
    console = Console(width=None if sys.stdout.isatty() else 200)
    report(found, console)
    roofline.report(console)
    count, faults = len(found), check(found)
    if with_cuda:
        cuda_count, cuda_faults = cuda.compiled(console)
        count, faults = count + cuda_count, faults + cuda_faults
    for fault in faults:
        print(fault)
    print(f"{count} kernels compiled, {len(faults)} faults")
    return bool(faults)

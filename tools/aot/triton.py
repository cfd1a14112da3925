"""Compiles the Triton kernels for GPUs that need not be here, and gates what the compiler made of them.

The backend's own functions are called on tensors without memory. So what is compiled is what a GPU would run: every
kernel in the configuration of this GPU's table, specialised as at run time; and every entry of the tables that no op
here asks for. Gates:

- nothing is spilled;
- the matrix unit is used, in 16 bit always. A product in fp32 is three in tf32 (NVIDIA) or exact (AMD), never one in
  tf32;
- a map in channels_last is loaded at least 64 bits at a time, or a whole pixel where that has less;
- a program fits into shared memory, in a configuration of a table also into that of GPUs that take the table of
  another (tuning.MOST_SHARED).
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import triton
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.interpreter import GridExecutor
from triton.runtime.jit import JITFunction

from bench.workloads.decoder import UNET
from bench.workloads.horizontal import HIDDEN
from bench.workloads.shapes import Level
from sharpmask_kernels.backends.triton import convolutions, decoder, gather_windows, horizontal, refinement, tuning
from sharpmask_kernels.backends.triton.convolutions import Convolution

from . import machine_code
from .roofline import IMAGE, LEVELS


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


def compile_horizontal(level: Level, dtype: torch.dtype, padding_mode: str) -> None:
    """All launches of a refinement module's horizontal half, forward and backward."""
    widths = (level.feature, HIDDEN, level.skip, level.out)
    feature, *hidden, out = maps(level, dtype, *widths)
    weights = [_meta(dtype, b, a, 3, 3) for a, b in itertools.pairwise(widths)]
    biases = [_meta(dtype, b) for b in widths[1:]]
    horizontal.horizontal(feature, weights, biases, padding_mode, None, 1, True)
    horizontal.horizontal_backward(out, hidden, feature, weights, padding_mode, None, 1, True, [True] * 7)


def compile_gathering(level: Level, dtype: torch.dtype) -> None:
    (horizontal,) = maps(level, dtype, level.out)
    index = torch.empty(1000, dtype=torch.int64, device="meta")
    side = level.side
    windows = gather_windows.gather_windows([horizontal], index, index, index, index, side, side // 10)
    places = (index, index, index, index)
    gather_windows.gather_windows_backward(windows, *places, 32, [side], [side], True, [True], side // 10)


def compile_decoder(level: int, dtype: torch.dtype, upsample: str, padding_mode: str) -> None:
    """All launches of the decoders' ops at one level of a U-Net, forward and backward."""
    channels, skip_channels, outputs, stride = UNET[level - 1]
    side = IMAGE // stride
    mask, lateral = (_meta(dtype, 32, c, side, side) for c in (channels, outputs))
    skip, out = (_meta(dtype, 32, c, 2 * side, 2 * side) for c in (skip_channels, outputs))
    weight, bias = _meta(dtype, outputs, channels + skip_channels, 3, 3), _meta(dtype, outputs)
    modes = (True, upsample, padding_mode, "relu")
    decoder.upsample_merge(mask, skip, weight, bias, *modes)
    decoder.upsample_merge_backward(out, out, mask, skip, weight, *modes, True, [True] * 4)
    decoder.upsample_add(lateral, out, upsample, "relu")
    decoder.upsample_add_backward(out, out, upsample, "relu", True, [True] * 2)


def entries() -> list[tuple[str, tuning.Shape]]:
    """What the ops at all levels look up in a table."""
    launches = ((JITFunction, "run"), (GridExecutor, "__call__"))  # the second in Triton's interpreter
    with contextlib.ExitStack() as stack:
        for launch in launches:
            stack.enter_context(mock.patch.object(*launch))
        stack.enter_context(tuning.force({}))
        for dtype, level, upsample in itertools.product(("fp16", "fp32"), LEVELS, ("nearest", "bilinear")):
            compile_ops(level, DTYPES[dtype], upsample, "zeros")
        return sorted(tuning.asked())


ENTRIES = "entries"
"""In the place of the modes in a case: the entries of a target's table."""


def compile_entry(kernel: str, shape: tuning.Shape, dtype: torch.dtype) -> None:
    """A launch of a kernel that asks for this entry."""
    side, ins, outs = 20, shape.inputs, shape.outputs
    if kernel == "conv3x3.input_gradient":
        grad, weight = _meta(dtype, 32, ins, side, side), _meta(dtype, ins, outs, 3, 3)
        convolutions.input_gradients(grad, Convolution(weight, None, "zeros"), (outs,), True, (True,))
        return
    first = max(1, ins // 2)
    rest = [ins - first] * (ins > first)
    maps, weight = [_meta(dtype, 32, c, side, side) for c in (first, *rest)], _meta(dtype, outs, ins, 3, 3)
    if kernel == "conv3x3.forward":
        x = _meta(dtype, 32, ins, side, side)
        convolutions.conv(x, Convolution(weight, None, "zeros"), torch.channels_last, relu=True)
    elif kernel == "upsample.forward":
        convolution = Convolution(weight, None, "replicate")
        convolutions.conv_relu_upsample(maps, None, convolution, "bilinear", False, torch.channels_last)
    else:
        skip = _meta(dtype, 32, rest[0], 2 * side, 2 * side) if rest else None
        decoder.upsample_merge(maps[0], skip, weight, None, True, "nearest", "zeros", "relu")


Case = tuple[str, int, str, str, str]  # target, level, dtype, upsample or ENTRIES, padding_mode


def cases(targets: list[str], quick: bool) -> Iterator[Case]:
    if quick:  # the widest and the narrowest channels
        yield from itertools.product(targets, (1, 4), ("fp16",), ("bilinear",), ("replicate",))
        return
    yield from itertools.product(targets, LEVELS, DTYPES, ("bilinear",), ("replicate",))
    yield from itertools.product(targets, LEVELS, ("fp16",), ("nearest",), ("zeros",))
    yield from itertools.product((t for t in targets if t in tuning.tables()), (0,), DTYPES, (ENTRIES,), ("",))


@dataclass(frozen=True)
class Compiled:
    """A kernel in one specialisation and configuration, and what was found in its machine code."""

    kernel: str
    case: Case
    config: str
    shared_limit: int  # bytes
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
        if self.shared > self.shared_limit:
            faults.append(f"{self.shared} bytes of shared memory")
        if self.precision:
            faults.append(self.precision)
        if self.matrix == 0 and _multiplies(self.kernel) and dtype != "fp32":
            faults.append("no instructions of the matrix unit")
        return faults


def _multiplies(kernel: str) -> bool:
    convolving = ("conv3x3.forward", "conv3x3.input_gradient", "conv3x3.weight_gradient")
    return kernel in (*convolving, "upsample.forward", "decoder.forward")


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

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        kernel = compile_only(self, *args, grid=grid, warmup=True, **kwargs)
        compiled = inspect(kernel, self, kwargs, case)
        found[f"{compiled.name} {kernel.hash}"] = compiled

    hip = "6" if target.gpu.backend == "hip" else None
    with (
        mock.patch.object(JITFunction, "run", run),
        mock.patch.object(torch.version, "hip", hip),
        mock.patch.object(tuning, "architecture", lambda device: name),
        tuning.force({}),  # forgets what was looked up for another target
    ):
        if upsample == ENTRIES:
            for kernel, shape in tuning.tables()[name]:
                if shape.bits == 8 * DTYPES[dtype].itemsize:
                    compile_entry(kernel, shape, DTYPES[dtype])
        else:
            compile_ops(level, DTYPES[dtype], upsample, padding_mode)
    return list(found.values())


def compile_ops(level: int, dtype: torch.dtype, upsample: str, padding_mode: str) -> None:
    compile_refinement(LEVELS[level], dtype, upsample, padding_mode)
    compile_horizontal(LEVELS[level], dtype, padding_mode)
    compile_gathering(LEVELS[level], dtype)
    compile_decoder(level, dtype, "nearest", padding_mode)
    if upsample == "nearest":
        compile_decoder(level, dtype, "bilinear_corners", padding_mode)


def inspect(kernel: Any, function: Any, constants: dict[str, Any], case: Case) -> Compiled:
    config = f"{constants['PIXELS']}px " if "PIXELS" in constants else ""
    metadata = kernel.metadata
    module = function.fn.__module__.rpartition(".")[2]
    name = f"{module}.{function.fn.__name__}"
    serves_others = case[0] in tuning.tables() and name in tuning.UNTUNED
    return Compiled(
        kernel=name,
        case=case,
        config=f"{config}{metadata.num_warps}w {metadata.num_stages}s",
        shared_limit=tuning.MOST_SHARED if serves_others else TARGETS[case[0]].shared,
        warps=metadata.num_warps,
        shared=metadata.shared,
        narrow=machine_code.narrow_loads(kernel, constants, DTYPES[case[2]].itemsize),
        precision=machine_code.precision(kernel) if case[2] == "fp32" else None,
        **machine_code.read(kernel),
    )


def report(found: list[Compiled], console: Console) -> None:
    columns = "kernel target level dtype modes config reg spills shared matrix 128b 64b 32b <32b instr warps"
    table = Table(title="Kernels, compiled ahead of time")
    for column in columns.split():
        table.add_column(column, justify="left" if column in ("kernel", "target", "modes", "config") else "right")
    for c in sorted(found, key=lambda c: (c.case, c.kernel)):
        target, level, dtype, upsample, padding_mode = c.case
        narrow = sum(n for bits, n in c.loads.items() if bits < 32)
        wide = [c.loads.get(bits, 0) for bits in (128, 64, 32)]
        cells = [
            c.kernel,
            target,
            level,
            dtype,
            f"{upsample} {padding_mode}",
            c.config,
            c.registers,
            c.spills,
            c.shared,
        ]
        cells += [c.matrix, *wide, narrow, c.instructions, f"{c.occupancy}/{TARGETS[target].warps}"]
        table.add_row(*map(str, cells), style="red" if c.faults() else None)
    console.print(table)


def faults(found: list[Compiled]) -> list[str]:
    """The gates that fail."""
    return [f"{c.name}: {fault}" for c in found for fault in c.faults()]


def compile_all(todo: list[Case], jobs: int) -> list[Compiled]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        console = Console(stderr=True)
        cases = track(pool.map(compile_case, todo), "compiling", len(todo), console=console, transient=True)
        return list(itertools.chain.from_iterable(cases))

"""Reads what a compiler made of a Triton kernel: registers, spills, matrix instructions, widths of loads."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton

from sharpmask_kernels.backends.triton import device

KERNELS = Path(device.__file__).parent / "kernels"


def read(kernel: Any) -> dict[str, Any]:
    """Registers, spills, instructions, instructions of the matrix unit, and loads by the bits that a lane loads."""
    return _read_nvidia(kernel) if _is_nvidia(kernel) else _read_amd(kernel)


def _is_nvidia(kernel: Any) -> bool:
    return "cubin" in kernel.asm


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


def precision(kernel: Any) -> str | None:
    """What is wrong with the products of fp32 numbers, or None."""
    dots = kernel.asm["ttir"].count("tt.dot ")
    if not _is_nvidia(kernel):
        plain = re.search(r"v_mfma\w*xf32", kernel.asm["amdgcn"])
        return "products in xf32" if plain else None
    ptx = kernel.asm["ptx"]
    single = len(re.findall(r"(?:mma|wgmma|tcgen05)\S*tf32", ptx))
    if dots and (kernel.asm["ttir"].count("inputPrecision = tf32x3") != dots or single == 0 or single % 3):
        return f"{single} tf32 instructions: not three products for one"
    return None


PIXEL = {
    "a": ("A", "CHANNELS"),  # conv3x3.forward gives its one map as a
    "b": ("B",),
    "addend": ("OUT",),
    "source": ("C",),
    "grad": ("C", "OUT"),
    "activation": ("SPLIT",),
    "m": ("A", "C"),
    "lateral": ("C",),
    "result": ("C",),
}
"""The constants that count the channels of a map, by its name in the kernels. A kernel has one of them."""


@functools.cache
def map_loads(source: str) -> dict[int, str]:
    """The lines of a kernel file that load from a map, and the map's name."""
    found = {}
    for node in ast.walk(ast.parse((KERNELS / source).read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "tl.load":
            names = {n.id.removesuffix("_ptr") for n in ast.walk(node.args[0]) if isinstance(n, ast.Name)}
            for name in names & PIXEL.keys():
                found[node.lineno] = name
    return found


def narrow_loads(kernel: Any, constants: dict[str, Any], itemsize: int) -> tuple[str, ...]:
    """The maps that are loaded too narrowly."""
    return tuple(narrow(kernel.asm["ptx" if _is_nvidia(kernel) else "amdgcn"], constants, itemsize))


def narrow(code: str, constants: dict[str, Any], itemsize: int) -> Iterator[str]:
    """The maps of which a lane loads less than 64 bits at a time, and less than a pixel.

    Machine code names no map, but before each load a comment gives the line of the kernel that it comes from.
    """
    loaded: dict[str, int] = {}
    name = None
    for line in code.splitlines():
        if place := re.search(r"\.loc\b.*?(\w+\.py):(\d+):\d+", line):
            known = (KERNELS / place[1]).exists()
            name = map_loads(place[1]).get(int(place[2])) if known else None
        elif name and (width := load_bits(line)):
            loaded[name] = min(loaded.get(name, 128), width)
    for name, width in loaded.items():
        pixel = next(constants[c] for c in PIXEL[name] if c in constants) * itemsize * 8
        # A load must be aligned, so it is no wider than the power of two that divides a pixel: 2 of 6 channels.
        if width < min(64, pixel & -pixel):
            yield name


def load_bits(line: str) -> int | None:
    """Bits that one lane loads from global memory in this line of PTX or AMD assembly, if it does."""
    if copied := re.search(r"cp\.async\.c[ag]\.shared\.global.*?, (0x[0-9a-f]+|\d+)[,;]", line):
        return 8 * int(copied[1], 0)
    if loaded := re.search(r"ld\.global\S*?(?:\.v(\d))?\.[bufs](\d+)\b", line):
        return int(loaded[1] or 1) * int(loaded[2])
    if loaded := AMD_LOAD.search(line):
        return AMD_WIDTHS[loaded[1]]
    return None

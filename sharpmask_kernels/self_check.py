"""Does a backend agree with the reference on this very machine?

Kernels are written and tested where not every GPU is at hand. So before a GPU's kernels are chosen automatically,
:func:`verdict` runs each op on small inputs, forward and backward, against the reference in float64, in a process of
its own: a kernel that crashes takes nothing with it. What was found is kept in a file, for each GPU, driver and
version.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import checks, dispatch, functional
from .windows import Windows

log = logging.getLogger("sharpmask_kernels")

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Largest error allowed, as a share of the largest value: sums of tens of products, a few roundings to the dtype."""

SECONDS = 600
"""For a whole check; compiling the kernels takes most of it."""


@dataclass(frozen=True)
class Case:
    """A call of an op: ``run(backend, *inputs)`` on float64 ``inputs``, rounded to a dtype first."""

    inputs: list[Tensor]
    run: Callable[..., Tensor]


def check(backend: str, device: torch.device) -> dict[str, str]:
    """Every op that ``backend`` has, with "ok" or what differed from the reference."""
    return {op: _check_op(op, backend, device) for op in dispatch.OPS if dispatch.has(backend, op)}


def _check_op(op: str, backend: str, device: torch.device) -> str:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(device)

    for (name, case), dtype in itertools.product(_CASES[op](random, device), TOLERANCE):
        if dispatch.module(backend).refusal(device, dtype):
            continue
        try:
            error = _error(case, backend, dtype)
        except Exception as problem:  # whatever a kernel may do wrong is a finding
            return f"{name}, {dtype}: {type(problem).__name__}: {problem}"
        if not error <= TOLERANCE[dtype]:
            return f"{name}, {dtype}: off by {error:.1e} of the largest value, allowed {TOLERANCE[dtype]:.0e}"
    return "ok"


def _error(case: Case, backend: str, dtype: torch.dtype) -> float:
    """The largest error of output and gradients, each as a share of the largest value of its tensor."""
    rounded = [x.to(dtype) for x in case.inputs]
    found = _outcome(case, backend, rounded)
    expected = _outcome(case, "reference", [x.double() for x in rounded])
    return max((_relative(f, e) for f, e in zip(found, expected, strict=True)), default=0.0)


def _outcome(case: Case, backend: str, inputs: list[Tensor]) -> list[Tensor]:
    """The output and, where the op has them, the gradients of the inputs."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = case.run(backend, *leaves)
    if not out.requires_grad:
        return [out]
    # A gradient that differs from cell to cell.
    weight = torch.linspace(-1, 1, max(out.numel(), 1), device=out.device, dtype=torch.float64)[: out.numel()]
    return [out.detach(), *torch.autograd.grad(out, leaves, weight.view_as(out).to(out.dtype))]


def _relative(found: Tensor, expected: Tensor) -> float:
    scale = expected.abs().max().clamp(min=1e-30)
    return float(((found.double() - expected.double()).abs().max() / scale).nan_to_num(nan=float("inf")))


Random = Callable[..., Tensor]
Cases = Iterator[tuple[str, Case]]


_MODES = (
    ("bilinear", "zeros", torch.contiguous_format),
    ("bilinear", "replicate", torch.channels_last),
    ("nearest", "zeros", torch.channels_last),
    ("nearest", "replicate", torch.contiguous_format),
)
"""Any two of a mode's three parts meet. All eight modes would take twice as long, most of it for compiling."""


def _refinement_cases(op: str) -> Callable[[Random, torch.device], Cases]:
    function = getattr(functional, op)

    def cases(random: Random, device: torch.device) -> Cases:
        for upsample, padding_mode, memory_format in _MODES:
            channels = {"merge_upsample": (20, 9), "refine": (33, 9), "add_upsample": (6, 9)}[op]
            maps = [random(2, c, 9, 21).contiguous(memory_format=memory_format) for c in channels]
            weights = {
                "merge_upsample": [random(6, 29, 3, 3), random(6)],
                "refine": [random(20, 33, 3, 3), random(20), random(6, 29, 3, 3), random(6)],
                "add_upsample": [random(6, 9, 3, 3), random(6)],
            }[op]
            # Positive: no activation near 0, where rounding decides what ReLU lets through. Small: sums fit into fp16.
            inputs = [x.abs() / 4 for x in [*maps, *weights]]
            options = {"upsample": upsample, "padding_mode": padding_mode}
            name = f"{upsample}, {padding_mode}, {memory_format}"

            def run(backend: str, *inputs: Tensor, options: dict[str, str] = options) -> Tensor:
                out: Tensor = function(*inputs, **options, backend=backend)
                return out

            yield name, Case(inputs, run)

    return cases


def _windows(device: torch.device) -> Windows:
    """Inside, over each border, outside, overlapping; of two images and two scales."""
    cells = [(0, 0, 0, 0), (0, 0, 1, 1), (1, 1, -2, 3), (0, 1, 4, -1), (1, 0, 90, 0), (1, 1, 2, 2), (1, 1, 2, 3)]
    return Windows(torch.zeros(len(cells), device=device), *torch.tensor(cells, device=device).T.contiguous())


def _gather_cases(random: Random, device: torch.device) -> Cases:
    windows = _windows(device)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        maps = [random(2, 19, *size).contiguous(memory_format=memory_format) for size in ((11, 13), (7, 9))]

        def run(backend: str, *maps: Tensor) -> Tensor:
            return functional.gather_windows(maps, windows, 6, step=2, backend=backend)

        yield str(memory_format), Case(maps, run)


def _cascade_cases(random: Random, device: torch.device) -> Cases:
    windows = _windows(device)
    widths = (16, 8, 4)
    for upsample, padding_mode in itertools.product(checks.UPSAMPLES, checks.PADDING_MODES):
        maps = [random(2, width, h << j, w << j) for h, w in ((9, 12), (6, 5)) for j, width in enumerate(widths[1:])]
        weights = [random(b, a, 3, 3) / (3 * a**0.5) for a, b in itertools.pairwise((*widths, 1))]
        inputs = [random(len(windows.row), widths[0], 4, 4), *maps, *weights]
        options = {"upsample": upsample, "padding_mode": padding_mode}

        def run(backend: str, *inputs: Tensor, options: dict[str, Any] = options) -> Tensor:
            encoding, a, b, c, d, first, second, head = (x.detach() for x in inputs)
            stages = [[(first, None)], [(second, None)]]
            return functional.refine_windows(
                encoding, [[a, b], [c, d]], windows, stages, (head, None), **options, backend=backend
            )

        yield f"{upsample}, {padding_mode}", Case(inputs, run)


def _encode_cases(random: Random, device: torch.device) -> Cases:
    windows = _windows(device)

    def run(backend: str, logits: Tensor) -> Tensor:
        encoded = functional.encode_windows(logits, windows, (45, 61), [0.5, 0.8], backend=backend)
        # Each counts string ends with a byte that no string contains.
        return torch.frombuffer(bytearray(b"".join(b"%b\0" % rle["counts"] for rle in encoded)), dtype=torch.uint8)

    yield "logits", Case([10 * random(len(windows.row), 32, 32)], run)


_CASES: dict[str, Callable[[Random, torch.device], Cases]] = {
    "merge_upsample": _refinement_cases("merge_upsample"),
    "refine": _refinement_cases("refine"),
    "add_upsample": _refinement_cases("add_upsample"),
    "gather_windows": _gather_cases,
    "refine_windows": _cascade_cases,
    "encode_windows": _encode_cases,
}


@functools.cache
def verdict(backend: str, device: torch.device) -> dict[str, str]:
    """:func:`check` in a process of its own, or what it found earlier on this GPU with the same software."""
    kept = _read_cache()
    key = _machine(backend, device)
    if key not in kept:
        log.info("checking the kernels of %r against PyTorch on %s, once; this may take minutes", backend, device)
        kept = {**kept, key: _check_apart(backend, device)}
        _write_cache(kept)
    return kept[key]


def _check_apart(backend: str, device: torch.device) -> dict[str, str]:
    ops = [op for op in dispatch.OPS if dispatch.has(backend, op)]
    if not sys.executable or getattr(sys, "frozen", False):
        return dict.fromkeys(ops, "no Python interpreter to run the check with")
    command = [sys.executable, "-m", __name__, backend, str(device)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)
        found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return dict.fromkeys(ops, f"the check took more than {SECONDS} s")
    except (OSError, ValueError, IndexError):
        last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        return dict.fromkeys(ops, f"the check ended early: {last}")
    return found


def _machine(backend: str, device: torch.device) -> str:
    """What a verdict depends on."""
    driver = Path("/proc/driver/nvidia/version")
    parts = [
        backend,
        torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        driver.read_text().splitlines()[0] if driver.exists() else "",
        torch.__version__,
        _version("triton"),
        _version("sharpmask"),
        _sources(),
    ]
    return " | ".join(parts)


def _version(package: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


@functools.cache
def _sources() -> str:
    """A hash of this package, so that who changes a kernel has it checked again."""
    files = sorted(p for p in Path(__file__).parent.rglob("*") if p.suffix in (".py", ".so", ".pyd"))
    return hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest()[:16]


def _cache_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sharpmask" / "self_check.json"


def _read_cache() -> dict[str, dict[str, str]]:
    try:
        kept = json.loads(_cache_file().read_text())
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in kept.items() if isinstance(v, dict)} if isinstance(kept, dict) else {}


def _write_cache(kept: dict[str, dict[str, str]]) -> None:
    path = _cache_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(kept, file, indent=1)
        os.replace(file.name, path)
    except OSError:
        pass  # a home that cannot be written to: the check runs again in the next process


if __name__ == "__main__":
    print(json.dumps(check(sys.argv[1], torch.device(sys.argv[2]))))

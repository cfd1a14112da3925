"""Stage measure: every op beside other ways to run it, and how near it comes to what this GPU can do.

Results are checked before they are timed. What matters most comes first: the ops in fp16 at the sizes that count, then
torch.compile, other dtypes, other sizes, and last what takes longest to get ready.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sharpmask_kernels import registry

from ..measure import DTYPES, Setting
from ..peers import PEERS, Contestant, compiled, contestants
from ..roofline import Peak
from ..workloads import FULL, Workload, refinement, workloads
from ..workloads.base import Function, Plain
from ..workloads.tiny import tiny
from . import clock, compiling
from .steps import Plan, Row, Step

MATRIX = {torch.float32: 4096, torch.float16: 8192, torch.bfloat16: 8192}
"""Sides of the matrices whose product gives the peak of arithmetic."""
COPIED = 1 << 30
"""Bytes, far more than caches hold."""

NAME = "measure"

AUTOTUNED = "compile-max-autotune"
# Its own graphs would lie within those of the clock.
WITHOUT_GRAPHS = functools.partial(compiled, mode="max-autotune-no-cudagraphs")
GPU_PEERS = PEERS | {AUTOTUNED: replace(PEERS[AUTOTUNED], transform=WITHOUT_GRAPHS)}

SECONDS = {"": 30.0, "compile": 60.0, AUTOTUNED: 90.0, "tensorrt": 60.0}
"""Of a step at most, by the peer that is measured beside eager PyTorch. Most are done after a few."""

BACKENDS = ("cuda", "triton")

ON_HOST = ("encode_windows",)
"""Ops whose result is on the host: no graph can hold them."""

REHEARSED = ("merge_upsample", "gather_windows")


def steps(plan: Plan) -> list[Step]:
    if plan.rehearse:
        works = [tiny()[op]._replace(training=op in REHEARSED[:1]) for op in REHEARSED]
        return [*compiling.steps(works[:1], ("fp32",), compiling.REHEARSE), *(_step(w, "fp32", "") for w in works)]
    every = list(every_workload())
    first = [w for w in every if is_headline(w)]
    rest = [w for w in every if not is_headline(w)]
    parts = list(compiling.apart(first, FULL.batch))
    others = ("bf16", "fp32")
    order = [
        *compiling.steps(parts, ("fp16",)),
        *(_step(w, "fp16", "") for w in first),
        *(_step(w, "fp16", "compile") for w in first),
        *compiling.steps(parts, others),
        *(_step(w, dtype, "") for dtype in others for w in first),
        *compiling.steps(rest, ("fp16", *others)),
        *(_step(w, dtype, "") for dtype in ("fp16", *others) for w in rest),
        *(_step(w, "fp16", AUTOTUNED) for w in first),
        *(_step(w, "fp16", "tensorrt") for w in first if not w.training),
        *(_step(w, dtype, "compile") for dtype in others for w in first),
    ]
    return list({step.name: step for step in order}.values())


def by_name(rehearse: bool) -> dict[str, Workload]:
    """The workloads that steps name."""
    known = tiny().values() if rehearse else every_workload()
    return {w.name: w for plain in known for w in (plain, plain._replace(training=True))}


def every_workload() -> Iterator[Workload]:
    """Those of the bench that a GPU has kernels for, and all levels of ``refine`` in a row."""
    whole = refinement.all_levels(FULL.batch)
    yield from (whole, whole._replace(training=True))
    yield from (w for w in workloads(FULL) if any(registry.backend(name).has(w.op) for name in BACKENDS))


def is_headline(workload: Workload) -> bool:
    """The sizes that count: a thousand windows, the finest level, all levels together, two of a decoder's."""
    return workload.op == "encode_windows" or workload.shape.startswith(HEADLINE)


HEADLINE = ("all-levels", "level4", "stage4-1000", "1000x", "unet 64+64", "unet 256+128", "256x128x128", "64x")


def _step(workload: Workload, dtype: str, peer: str) -> Step:
    question = {"what": "measure", "name": workload.name, "dtype": dtype, "peer": peer}
    name = f"{workload.name} {dtype}" + (f" beside {peer}" if peer else "")
    return Step(name, SECONDS[peer], question=question)


class Answers:
    """What the stage's process answers: the times of one workload in one dtype."""

    def __init__(self, folder: Path, rehearse: bool) -> None:
        self.device = torch.device("cpu" if rehearse else "cuda")
        self.workloads = by_name(rehearse)
        self.rehearse, self.peaks = rehearse, dict[torch.dtype, Peak]()
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False

    def measure(self, name: str, dtype: str, peer: str) -> dict[str, Any]:
        workload, kind = self.workloads[name], (DTYPES[dtype], self.device)
        everyone, left_out = contestants(workload, *kind, [])
        found = [c for c in everyone if c.backend != "reference" and (c.channels_last or not has_formats(c, everyone))]
        left_out = {who: reason for who, reason in left_out.items() if who in BACKENDS}
        if peer:
            other, reason = beside(workload, peer)
            found += [] if reason else [other]
            left_out |= {peer: reason} if reason else {}
        setting, peak = Setting(workload, *kind), self.peak(DTYPES[dtype])
        rows, problems = [], {}
        for contestant in found:
            try:
                rows.append(self.row(setting, contestant, dtype, peak))
            except Exception as problem:  # a wrong result, or what a compiler cannot do: the others are measured
                problems[contestant.name] = str(problem).strip().partition("\n")[0]
        told = [said(rows), *(f"{who} left out: {reason}" for who, reason in left_out.items())]
        told += [f"{who} failed: {problem}" for who, problem in problems.items()]
        return {"status": "failed" if problems else "ok", "said": "; ".join(told), "rows": rows}

    def row(self, setting: Setting, contestant: Contestant, dtype: str, peak: Peak) -> Row:
        run = setting.runner(contestant, wait=False)
        times = clock.times(run, self.device, capture=setting.workload.op not in ON_HOST)
        cost = setting.cost
        return {
            "op": setting.workload.op,
            "shape": setting.workload.shape,
            "mode": setting.workload.mode,
            "dtype": dtype,
            "who": contestant.name.removesuffix("-nhwc"),
            "ours": contestant.backend is not None,
            **times._asdict(),
            "arithmetic": cost.flops / peak.flops / times.cold,
            "memory": cost.bytes / peak.bytes / times.cold,
            "flops": cost.flops,
            "bytes": cost.bytes,
            "peak flops": peak.flops,
            "peak bytes": peak.bytes,
        }

    def peak(self, dtype: torch.dtype) -> Peak:
        """Bytes of a copy and operations of a product of matrices, a second."""
        if dtype not in self.peaks:
            side, copied = (64, 1 << 16) if self.rehearse else (MATRIX[dtype], COPIED)
            a, b = (torch.randn(side, side, device=self.device, dtype=dtype) for _ in range(2))
            source = torch.randn(copied // 4, device=self.device)
            target = torch.empty_like(source)
            product = clock.times(lambda: a @ b, self.device).warm
            copy = clock.times(lambda: target.copy_(source), self.device).warm
            self.peaks[dtype] = Peak(2 * side**3 / product, 2 * copied / copy)
        return self.peaks[dtype]


def has_formats(contestant: Contestant, everyone: Iterable[Contestant]) -> bool:
    """Whether it is also measured on channels_last maps, which GPUs' kernels are made for."""
    return any(other.name == f"{contestant.name}-nhwc" for other in everyone)


def beside(workload: Workload, name: str) -> tuple[Contestant, str | None]:
    """A peer on channels_last maps, and why it cannot take part, if it cannot."""
    module, peer = workload.module(torch.device("cpu")), GPU_PEERS[name]

    def prepare(module: Plain, example: tuple[Tensor, ...]) -> Function:
        return (module.whole() if module.in_parts else module).through(peer.transform, example)

    made = Contestant(name, prepare, channels_last=module.maps and peer.channels_last)
    return made, peer.obstacle(module, workload.training)


def said(rows: list[Row]) -> str:
    """The fastest of ours against the best of the others."""
    ours = min((r for r in rows if r["ours"]), key=lambda r: r["warm"], default=None)
    others = min((r for r in rows if not r["ours"]), key=lambda r: r["warm"], default=None)
    if ours is None or others is None:
        return "there is no kernel of ours"
    return f"{ours['who']} {micro(ours['warm'])}, {others['warm'] / ours['warm']:.2f} times as fast as {others['who']}"


def micro(seconds: float) -> str:
    return f"{1e6 * seconds:.1f} µs"


def tables(rows: list[Row]) -> dict[str, list[list[str]]]:
    """A table for each dtype. Ratios are the others' times divided by our fastest backend's, with warm caches."""
    found = {}
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        own = [row for row in rows if row["dtype"] == dtype]
        peers = list(dict.fromkeys(row["who"] for row in own if not row["ours"]))
        head = ["op", "ours", "warm", "cold", "of the roof, cold", "call", *peers]
        works = dict.fromkeys((row["op"], row["shape"], row["mode"]) for row in own)
        lines = [_line(work, [r for r in own if (r["op"], r["shape"], r["mode"]) == work], peers) for work in works]
        found[dtype] = [head, *lines]
    return found


def _line(work: tuple[str, str, str], rows: list[Row], peers: list[str]) -> list[str]:
    ours = min((r for r in rows if r["ours"]), key=lambda r: r["warm"], default=None)
    if ours is None:
        return [" ".join(work), "-", "", "", "", "", *[""] * len(peers)]
    # The same workload is measured once for each peer.
    times = {peer: [r["warm"] for r in rows if r["who"] == peer] for peer in peers}
    ratios = [f"{np.median(found) / ours['warm']:.2f}" if found else "" for found in times.values()]
    bound = max(("arithmetic", "memory"), key=lambda kind: ours[kind])
    share = f"{ours[bound]:.0%} of {bound}"
    return [" ".join(work), ours["who"], micro(ours["warm"]), micro(ours["cold"]), share, micro(ours["call"]), *ratios]

"""What ``pytest bench`` and ``python -m bench.compare`` share: options, what to measure, and the header."""

from __future__ import annotations

import functools
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .machine import describe
from .measure import DTYPES, Setting
from .peers import PEERS, Contestant, contestants
from .workloads import FULL, SMALL, Workload, workloads


def add_options(add: Callable[..., Any]) -> None:
    """``add`` is the ``add_argument`` of argparse or the ``addoption`` of pytest."""
    add("--small", action="store_true", help="batch 2, ten windows, a small photo: to try the bench, not the ops")
    add("--dtype", choices=list(DTYPES), default="fp32", help="of maps and parameters (default: %(default)s)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    add("--threads", type=int, help="CPU threads of PyTorch and the ops (default: PyTorch's choice)")
    add("--peer", choices=list(PEERS), action="append", default=[], help="also measure this; may be repeated")
    add("--profile", type=Path, metavar="DIR", help="also write torch.profiler traces into this folder")


class Case(NamedTuple):
    """A workload, who is measured on it, and who is left out for which reason."""

    workload: Workload
    contestants: list[Contestant]
    left_out: dict[str, str]


def cases(options: Namespace) -> list[Case]:
    """Everything to measure. Also sets PyTorch up for it."""
    if options.threads:
        torch.set_num_threads(options.threads)
    # Everyone computes in the dtype asked for. TF32 has the range of fp32, not its precision.
    torch.backends.cudnn.allow_tf32 = False
    kind = DTYPES[options.dtype], torch.device(options.device)
    sizes = SMALL if options.small else FULL
    return [Case(workload, *contestants(workload, *kind, options.peer)) for workload in workloads(sizes)]


def setting(case: Case, options: Namespace) -> Setting:
    return _setting(case.workload, DTYPES[options.dtype], torch.device(options.device))


# Inputs are large. Contestants on the same workload come one after another, so one setting at a time is enough.
_setting = functools.lru_cache(maxsize=1)(Setting)


def header(options: Namespace, cases: list[Case]) -> dict[str, str]:
    """What must be known to read a time: machine, versions, and who is left out."""
    ops: dict[tuple[str, str], list[str]] = {}
    for case in cases:
        for name_and_reason in case.left_out.items():
            ops.setdefault(name_and_reason, []).append(case.workload.op)
    left_out = {f"{name} left out of {', '.join(dict.fromkeys(of))}": reason for (name, reason), of in ops.items()}
    return {**describe(), "measured": f"{options.dtype} on {options.device}", **left_out}

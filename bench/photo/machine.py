"""The head line: what must be known to read the times."""

from __future__ import annotations

import importlib.metadata
import os
import time

import torch

from .. import machine
from .turns import say

BUSY = 0.5
"""A load from which on times say little."""


def describe() -> dict[str, str]:
    """CPU, instruction set, cores, versions, commit, date and load."""
    name, isa = machine.processor(torch.device("cpu"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > BUSY:
        say(f"warning: the machine is busy (load {load:.1f}), so times and ratios say little")
    if isa == "none":
        say("warning: the C++ kernels are not compiled from these sources, so ours is plain PyTorch")
    packages = ("torch", "onnxruntime", "openvino", "segment-anything")
    return {
        "CPU": name,
        "instruction set": isa,
        "cores": str(cores),
        **{package: version(package) for package in packages},
        "commit": machine.commit(),
        "date": time.strftime("%Y-%m-%d"),
        "load at the start": f"{load:.1f}",
    }


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"

"""The machine, versions and commit that times were measured with."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import torch

from sharpmask_kernels import env
from sharpmask_kernels.machine import cpu_model
from sharpmask_kernels.verdicts import version


def describe() -> dict[str, str]:
    """Versions, machine, threads, the compiler of the extension, commit."""
    return dict([*env.versions(), *env.machine(), *env.compiled_module(), ("commit", commit())])


def processor(device: torch.device) -> tuple[str, str]:
    """The name of the CPU or GPU, and the instruction set that our kernels use on it."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return properties.name, f"sm_{properties.major}{properties.minor}"
    return cpu_model(), dict(env.compiled_module()).get("instruction set", "none").partition(",")[0]


def conditions(device: torch.device) -> str:
    """What a table's times depend on most, for its first cell."""
    isa = processor(device)[1]
    return f"{isa}, {torch.get_num_threads()} threads" if device.type == "cpu" else isa


def summary(device: torch.device) -> str:
    """What must be known to read a table's times, in one line."""
    name, isa = processor(device)
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "onnxruntime", "openvino"))
    return f"{name}, {isa}; {packages}; commit {commit()}; {time.strftime('%Y-%m-%d')}"


def commit() -> str:
    """The commit of this checkout, with "-dirty" if tracked files other than the history have changed since."""
    try:
        name = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude)history")
    except (OSError, subprocess.CalledProcessError):
        return "unknown: not in a git checkout"
    return f"{name}-dirty" if changed else name


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    return done.stdout.strip()

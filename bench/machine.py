"""The machine, versions and commit that times were measured with."""

from __future__ import annotations

import subprocess
from pathlib import Path

import torch

from sharpmask_kernels import env


def describe() -> dict[str, str]:
    """Versions, machine, threads, the compiler of the extension, commit."""
    return dict([*env.versions(), *env.machine(), *env.compiled_module(), ("commit", commit())])


def processor(device: torch.device) -> tuple[str, str]:
    """The name of the CPU or GPU, and the instruction set that our kernels use on it."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return properties.name, f"sm_{properties.major}{properties.minor}"
    return env.cpu_model(), dict(env.compiled_module()).get("instruction set", "none").partition(",")[0]


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

"""On what the times were measured."""

from __future__ import annotations

import subprocess
from pathlib import Path

from sharpmask_kernels import env


def describe() -> dict[str, str]:
    """Versions, machine, threads, the compiler of the extension, commit."""
    return dict([*env.versions(), *env.machine(), *env.compiled_module(), ("commit", commit())])


def commit() -> str:
    """The commit of this checkout, with "-dirty" if tracked files were changed since."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown: not in a git checkout"
    return done.stdout.strip()

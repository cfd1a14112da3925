"""This machine: its processor, and the folder where what was found out about it is kept."""

from __future__ import annotations

import os
import platform
import tempfile
from pathlib import Path


def cpu_model() -> str:
    """The name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cache_folder() -> Path:
    """The user's cache folder for this package; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sharpmask"


def write_whole(path: Path, text: str) -> None:
    """Write a file at once, so that no reader sees a part of it. Makes its folder. Raises ``OSError``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # which goes, whatever fails
        part = Path(folder) / path.name
        part.write_text(text)
        os.replace(part, path)

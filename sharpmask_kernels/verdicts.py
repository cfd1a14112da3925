"""What the self-check has found about a backend on this machine: asked for once, then kept in a file.

:mod:`sharpmask_kernels.self_check` runs in a process of its own, because a kernel that crashes must take nothing with
it. What it found is kept for each GPU, driver and version of the software.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

from . import registry
from .backends import native
from .machine import cache_folder, write_whole

log = logging.getLogger("sharpmask_kernels")

DISTRIBUTIONS = ("sharpmask", "sharpmask-kernels")
"""Those that hold this package: with the search for masks, and alone."""

NOT_INSTALLED = "not installed"

SECONDS = 600
"""For a whole check; compiling the kernels takes most of it."""

SELF_CHECK = f"{__package__}.self_check"
"""The module that runs the check, given a backend and a device; it prints what it found as JSON."""


@functools.cache
def verdict(backend: str, device: torch.device) -> dict[str, str]:
    """What the self-check of ``backend`` finds on ``device``, or found earlier there with the same software: "ok" or a
    fault for each op."""
    kept = _read_cache()
    key = _machine(backend, device)
    if key not in kept:
        log.info("checking the kernels of %r against PyTorch on %s, once; this may take minutes", backend, device)
        kept = {**kept, key: _check_apart(backend, device)}
        _write_cache(kept)
    return kept[key]


def _check_apart(backend: str, device: torch.device) -> dict[str, str]:
    ops = [op for op in registry.OPS if registry.backend(backend).has(op)]
    if not sys.executable or getattr(sys, "frozen", False):
        return dict.fromkeys(ops, "no Python interpreter to run the check with")
    command = [sys.executable, "-m", SELF_CHECK, backend, str(device)]
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
        _device_name(device),
        driver.read_text().splitlines()[0] if driver.exists() else "",
        torch.__version__,
        version("triton"),
        own_version(),
        _sources(),
    ]
    return " | ".join(parts)


def version(package: str) -> str:
    """The version of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return NOT_INSTALLED


def own_version() -> str:
    """The version of this package, by the distribution that it was installed with."""
    return next((found for name in DISTRIBUTIONS if (found := version(name)) != NOT_INSTALLED), NOT_INSTALLED)


def _device_name(device: torch.device) -> str:
    name = getattr(torch.get_device_module(device), "get_device_name", None)
    return str(name(device)) if name else device.type


@functools.cache
def _sources() -> str:
    """A hash of this package, so that a changed kernel is checked again."""
    files = sorted(p for p in Path(__file__).parent.rglob("*") if p.suffix in (".py", ".json", ".so", ".pyd"))
    compiled = native.load("_cuda")  # in a checkout, perhaps the installed one
    files += [] if isinstance(compiled, str) else [Path(str(compiled.__file__))]
    return hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest()[:16]


def _cache_file() -> Path:
    return cache_folder() / "self_check.json"


def _read_cache() -> dict[str, dict[str, str]]:
    try:
        kept = json.loads(_cache_file().read_text())
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in kept.items() if isinstance(v, dict)} if isinstance(kept, dict) else {}


def _write_cache(kept: dict[str, dict[str, str]]) -> None:
    with contextlib.suppress(OSError):  # a home that cannot be written to: the check runs again in the next process
        write_whole(_cache_file(), json.dumps(kept, indent=1))

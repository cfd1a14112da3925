"""What a run needs: packages, the compiled extension, and what must be known to read its report."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone

import torch
from torch.torch_version import TorchVersion

from sharpmask_kernels import env
from sharpmask_kernels.sources import digest
from sharpmask_kernels.verdicts import version

from .. import machine
from ..process import ROOT

MODULES = {"pillow": "PIL", "pyyaml": "yaml"}
"""Modules that have another name than their package."""

SECONDS = 300.0
"""For compiling."""


@dataclass(frozen=True)
class Need:
    package: str
    why: str
    required: bool
    least: str = "0"
    """Version."""

    @functools.cached_property
    def obstacle(self) -> str | None:
        """Why it does not serve, if it does not: one may be there without what it needs itself, or too old."""
        module = MODULES.get(self.package, self.package.replace("-", "_"))
        if importlib.util.find_spec(module) is None:
            return "not there"
        try:
            if self.required:
                importlib.import_module(module)
        except Exception as problem:
            return str(problem).partition("\n")[0]
        too_old = self.least != "0" and TorchVersion(version(self.package)) < TorchVersion(self.least)
        return f"{version(self.package)}, not {self.least}" if too_old else None


def needs() -> Iterator[Need]:
    """Packages: the package's own dependencies, as pyproject.toml has them, and what goes beyond them."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

    def listed(name: str) -> list[tuple[str, str]]:
        block = re.search(rf"(?ms)^{name} = \[(.*?)^\]", text)
        return re.findall(r'(?m)^ *"([\w-]+)(?:>=([\d.]+))?', block[1] if block else "")

    for package, least in listed("dependencies"):
        yield Need(package, "the package's own", True, least or "0")
    for package, least in listed("requires"):
        yield Need(package, "compiles the extension, where it is not compiled", False, least or "0")
    yield Need("triton", "its kernels; a CUDA build of torch brings it", True)
    yield Need("pytest", "stage prove", True)
    yield Need("pyyaml", "stage prove, which trains", True)
    yield Need("hypothesis", "some tests of stage prove, which are skipped without it", False)
    yield Need("torch-tensorrt", "a peer in stage measure", False)


def needs_table() -> str:
    rows = [("package", "", "for")]
    rows += [
        (n.package, ("missing: " if n.required and n.obstacle else "") + (n.obstacle or "found"), n.why)
        for n in needs()
    ]
    programs = "nvcc and a C++17 compiler; compute-sanitizer for stage sanitize; both come with the CUDA toolkit"
    return f"{env.table(rows)}\n\nprograms: {programs}"


def missing() -> list[str]:
    """Of what is required, with the reason."""
    return [f"{need.package} ({need.obstacle})" for need in needs() if need.required and need.obstacle]


def build() -> str:
    """Compiles the extension in place where it is not, in a process of its own. Returns what was done, in words.

    Raises ``RuntimeError`` with the compiler's last words.
    """
    done = subprocess.run([sys.executable, "-c", UNBUILT], cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 0:
        return "the extension was compiled before"
    start = time.monotonic()
    wanted = {"SHARPMASK_NATIVE": "1", "SHARPMASK_CUDA": "1", "SHARPMASK_CUDA_ARCHS": "native"}
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    environment = {**wanted, **os.environ}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace", timeout=SECONDS
        )
    except subprocess.TimeoutExpired as reason:
        raise RuntimeError(f"the extension was not compiled in {SECONDS:.0f} s") from reason
    if done.returncode != 0:
        raise RuntimeError("the extension does not compile:\n" + (done.stdout + done.stderr)[-3000:].strip())
    return f"the extension was compiled in {time.monotonic() - start:.0f} s"


UNBUILT = """
import sys
from sharpmask_kernels.backends import native
sys.exit(any(isinstance(native.load(name), str) for name in ("_cpu", "_cuda")))
"""


def head(rehearse: bool) -> dict[str, str]:
    """What must be known to read a report."""
    device = torch.device("cpu" if rehearse else "cuda")
    name, isa = machine.processor(device)
    versions = {key: value for key, value in [*env.versions(), *env.machine()] if key != "sharpmask"}
    return {
        "device": f"{name}, {isa}",
        "commit": machine.commit(),
        "sources": sources(),
        "rehearsal": "yes: nothing here was run on a GPU, and no time says anything" if rehearse else "no",
        **versions,
        **({} if rehearse else {"state": state()}),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def state() -> str:
    """The driver, clocks and power of the GPU as the run begins, and who else uses it: what its times depend on."""
    fields = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu,memory.used"
    command = ["nvidia-smi", "--id=0", f"--query-gpu={fields}", "--format=csv"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=20)
    except (OSError, subprocess.TimeoutExpired) as problem:
        return f"unknown: {problem}"
    return "; ".join(done.stdout.strip().splitlines()) or f"unknown: nvidia-smi ended with {done.returncode}"


def sources() -> str:
    """A hash of the kernels, in all languages, with their tables."""
    found = hashlib.sha256("".join(digest(ROOT / "csrc", name) for name in ("_cpu", "_cuda")).encode())
    for path in sorted(p for p in (ROOT / "sharpmask_kernels").rglob("*") if p.suffix in (".py", ".json")):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]

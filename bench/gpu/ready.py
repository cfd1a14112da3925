"""What a run needs: packages, the compiled extension, and what must be known to read its report."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import NamedTuple

import torch

from sharpmask_kernels import env
from sharpmask_kernels.sources import digest

from .. import machine
from ..process import ROOT

MODULES = {"pillow": "PIL", "pyyaml": "yaml"}
"""Modules that have another name than their package."""

SECONDS = 300.0
"""For compiling."""


class Need(NamedTuple):
    package: str
    why: str
    required: bool

    @property
    def found(self) -> bool:
        return importlib.util.find_spec(MODULES.get(self.package, self.package.replace("-", "_"))) is not None


def needs() -> Iterator[Need]:
    """Packages: the package's own dependencies, as pyproject.toml has them, and what goes beyond them."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

    def listed(name: str) -> list[str]:
        block = re.search(rf"(?ms)^{name} = \[(.*?)^\]", text)
        return re.findall(r'(?m)^ *"([\w-]+)', block[1] if block else "")

    for package in listed("dependencies"):
        yield Need(package, "the package's own", True)
    for package in listed("requires"):
        yield Need(package, "compiles the extension", True)
    yield Need("triton", "its kernels; a CUDA build of torch brings it", True)
    yield Need("pytest", "stage prove", True)
    yield Need("pyyaml", "stage prove, which trains", True)
    yield Need("hypothesis", "some tests of stage prove, which are skipped without it", False)
    yield Need("torch-tensorrt", "a peer in stage measure", False)


def needs_table() -> str:
    rows = [("package", "", "for")]
    rows += [(n.package, "found" if n.found else "missing" if n.required else "not there", n.why) for n in needs()]
    programs = "nvcc and a C++17 compiler; compute-sanitizer for stage sanitize; both come with the CUDA toolkit"
    return f"{env.table(rows)}\n\nprograms: {programs}"


def missing() -> list[str]:
    return [need.package for need in needs() if need.required and not need.found]


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
    done = subprocess.run(
        command, cwd=ROOT, env={**wanted, **os.environ}, capture_output=True, text=True, timeout=SECONDS
    )
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
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def sources() -> str:
    """A hash of the kernels, in all languages, with their tables."""
    found = hashlib.sha256("".join(digest(ROOT / "csrc", name) for name in ("_cpu", "_cuda")).encode())
    for path in sorted(p for p in (ROOT / "sharpmask_kernels").rglob("*") if p.suffix in (".py", ".json")):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]

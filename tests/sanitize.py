"""The contract on the C++ kernels, every address and all arithmetic checked: ``python -m tests.sanitize [--short]``.

Compiles csrc/ into build/sanitized with AddressSanitizer and UndefinedBehaviorSanitizer and runs the tests of the cpu
backend on that, with each instruction set that this machine has. --short runs the hostile arguments, with the best
instruction set only. The first fault found ends the run, with where it happened and a non-zero exit status.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "sanitized"
MODULE = "sharpmask_kernels._cpu"
VARIABLE = "SHARPMASK_SANITIZED"

# gcc counts the conversion of a float too large for its integer apart.
CHECKS = "-fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all"
# Not optimised: that takes half as long to compile, and no fault is optimised away.
FLAGS = f"-O0 -g1 -fno-omit-frame-pointer {CHECKS}"

WHOLE = "cpu and not no_inline_function"  # unoptimised, the module has copies of inline functions
SHORT = "cpu and (hostile or any_window or test_layouts or test_out_is_written)"


def build() -> Path:
    """The path of the module, compiled as far as sources have changed."""
    library = FOLDER / "lib"
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--build-lib", str(library)]
    flags = {"CXXFLAGS": FLAGS, "LDFLAGS": CHECKS, "SHARPMASK_NATIVE": "1", "SHARPMASK_CUDA": "0"}
    command += ["--build-temp", str(FOLDER / "objects")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | flags, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stdout + done.stderr)
    return library / f"{MODULE.replace('.', '/')}{sysconfig.get_config_var('EXT_SUFFIX')}"


def install(path: str) -> None:
    """The module at ``path`` is from now on the cpu backend's."""
    spec = importlib.util.spec_from_file_location(MODULE, path)
    assert spec is not None and spec.loader is not None
    sys.modules[MODULE] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[MODULE])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="the hostile arguments only")
    short = parser.parse_args().short
    from sharpmask_kernels.backends.cpu import device as cpu

    from . import emulator

    isas = cpu.module().build_info()["isas"].split(", ")
    environment = os.environ | emulator.sanitizers() | {VARIABLE: str(build()), "OMP_NUM_THREADS": "2"}
    # A tensor too large for the memory is an error of PyTorch's, not a fault.
    environment["ASAN_OPTIONS"] += ":allocator_may_return_null=1"
    # Not captured by pytest, or a sanitizer's last words would be lost.
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", __spec__.name, "-p", "no:cacheprovider", "--full"]
    command += ["-k", SHORT if short else WHOLE, "tests/contract"]
    command += [] if short else ["tests/kernels/test_cpu.py"]
    for isa in isas[-1:] if short else isas:
        print(f"\n{isa}", flush=True)
        done = subprocess.run(command, cwd=ROOT, env=environment | {"SHARPMASK_CPU_ISA": isa})
        if done.returncode != 0:
            print(f"FAILED (exit status {done.returncode}) with {isa}", file=sys.stderr)
            return 1
    return 0


if VARIABLE in os.environ:  # in the process that main starts, as a plugin of pytest
    install(os.environ[VARIABLE])
elif __name__ == "__main__":
    sys.exit(main())

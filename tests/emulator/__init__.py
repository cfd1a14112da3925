"""The backend ``cuda`` without a GPU: its sources compiled for the CPU, with CUDA's threads emulated (see emulator.h).

:func:`install` puts the module made of them where the backend looks for its own. :func:`machine` sets the schedule of
the threads and the GPU to imitate. ``python -m tests.emulator.schedules`` runs the tests under every schedule,
``python -m tests.emulator.barriers`` removes barriers from the kernels.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import ninja
import pybind11
from ninja.ninja_syntax import Writer, escape

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
CSRC = ROOT / "csrc"

MODULE = "sharpmask_kernels._cuda"
MODULE_FILE = f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
SOURCES = (".h", ".cuh", ".cpp", ".cu")

FORWARD, REVERSE = -1, -2
"""Schedules; seeds of shuffled ones count from 0."""
NAMES = {"forward": FORWARD, "reverse": REVERSE}

FLAGS = ["-std=c++17", "-O1", "-g1", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
FLAGS += ["-Wno-unknown-pragmas", "-Werror", "-DSHARPMASK_EMULATED"]
SANITIZE = ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")


def build(sanitized: bool = False, csrc: Path = CSRC, folder: Path | None = None) -> Path:
    """Compiles the module and returns its path. Raises CalledProcessError."""
    folder = folder or ROOT / "build" / ("emulator-sanitized" if sanitized else "emulator")
    flags = [*FLAGS, *(SANITIZE if sanitized else [])]
    return _once(folder, MODULE_FILE, [HERE, csrc], flags, lambda target: _compile(target, csrc, flags))


def build_self_test() -> Path:
    """Compiles self_test.cpp, sanitized, and returns the program's path. Raises CalledProcessError."""
    sources = [str(HERE / name) for name in ("emulator.cpp", "self_test.cpp")]
    flags = ["-std=c++17", "-g1", *SANITIZE]

    def compile_program(target: Path) -> None:
        subprocess.run([*compiler(), *flags, *sources, "-o", str(target)], check=True)

    return _once(ROOT / "build" / "emulator-self-test", "self_test", [HERE], flags, compile_program)


def _once(folder: Path, name: str, tops: Sequence[Path], flags: list[str], make: Callable[[Path], None]) -> Path:
    """The file that ``make`` makes at the path it is given, made once for all processes and test runs.

    Its folder is named after a hash of all that it is made of: the sources below ``tops``, the compiler and its
    ``flags``. The first process to come makes it, while the others wait for the lock.
    """
    target = folder / _fingerprint(tops, flags) / name
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            make(folder / name)
            os.replace(folder / name, target)
    return target


def _fingerprint(tops: Sequence[Path], flags: list[str]) -> str:
    """A hash of the sources, the compiler, its flags and the versions of Python and pybind11."""
    digest = hashlib.sha256(json.dumps([sys.version, pybind11.__version__, compiler(), flags]).encode())
    digest.update(subprocess.run([*compiler(), "--version"], capture_output=True, check=True).stdout)
    for top in tops:
        for path in sorted(p for p in top.rglob("*") if p.suffix in SOURCES and top / "cpu" not in p.parents):
            digest.update(f"\n{path.relative_to(top)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _compile(target: Path, csrc: Path, flags: list[str]) -> None:
    """Compiles what has changed since the last time in this folder, and links it."""
    _write_graph(target.parent, target, csrc, flags)
    command = [str(Path(ninja.BIN_DIR, "ninja")), "--quiet", "-C", str(target.parent)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout)


def _write_graph(folder: Path, target: Path, csrc: Path, flags: list[str]) -> None:
    sources = [HERE / "emulator.cpp", csrc / "python" / "cuda.cpp", *sorted((csrc / "cuda").glob("*.cu"))]
    includes = [f"-I{HERE}", *(f"-isystem{d}" for d in (sysconfig.get_path("include"), pybind11.get_include()))]
    defines = [f"-DSHARPMASK_FLAGS={json.dumps(shlex.join(flags))}"]
    with (folder / "build.ninja").open("w") as file:
        graph = Writer(file, width=1000)
        graph.variable("cxx", escape(shlex.join(compiler())))
        graph.variable("flags", escape(shlex.join(flags)))
        graph.variable("options", escape(shlex.join([*includes, *defines])))
        graph.rule("cxx", "$cxx -x c++ $flags $options -MMD -MF $out.d -c $in -o $out", depfile="$out.d", deps="gcc")
        graph.rule("link", "$cxx -shared $flags $in -o $out")
        objects = [f"{source.name}.o" for source in sources]
        for source, compiled in zip(sources, objects, strict=True):
            graph.build(compiled, "cxx", escape(str(source)))
        graph.build(escape(str(target)), "link", objects)


def install() -> None:
    """Gives the backend the module at $SHARPMASK_EMULATOR, by default that of :func:`build`; to be called first."""
    path = os.environ.get("SHARPMASK_EMULATOR") or build()
    spec = importlib.util.spec_from_file_location(MODULE, path)
    assert spec is not None and spec.loader is not None
    sys.modules[MODULE] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[MODULE])
    _set()


def usual_schedule() -> int:
    """From $SHARPMASK_EMULATOR_SCHEDULE: forward (the default), reverse, or the seed of a shuffled one."""
    name = os.environ.get("SHARPMASK_EMULATOR_SCHEDULE", "forward")
    return NAMES[name] if name in NAMES else int(name)


def sanitizers() -> dict[str, str]:
    """The environment in which Python can load a sanitized module."""

    def library(name: str) -> str:
        command = [*compiler(), f"-print-file-name={name}"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    return {
        "LD_PRELOAD": f"{library('libasan.so')} {library('libubsan.so')}",
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
    }


@contextlib.contextmanager
def machine(schedule: int | None = None, **gpu: int) -> Iterator[None]:
    """Another schedule or GPU than usual. ``gpu``: see :func:`_set`."""
    _set(schedule, **gpu)
    try:
        yield
    finally:
        _set()


def map_loads() -> dict[int, int]:
    """How often the kernels have loaded 2, 4, 8 and 16 bytes of maps since the last call."""
    count = _library().emulator_map_loads
    count.restype = ctypes.c_uint64
    found = {size: count(size) for size in (2, 4, 8, 16)}
    return {size: loads for size, loads in found.items() if loads}


def _library() -> ctypes.CDLL:
    from sharpmask_kernels.backends.cuda import device

    return ctypes.CDLL(str(device.module().__file__))


def _set(
    schedule: int | None = None,
    multiprocessors: int = 3,
    shared_per_block: int = 227 << 10,
    shared_per_multiprocessor: int = 228 << 10,
    matrix_unit: int = 1,
) -> None:
    set_machine = _library().emulator_set
    set_machine.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
    chosen = usual_schedule() if schedule is None else schedule
    set_machine(chosen, multiprocessors, shared_per_block, shared_per_multiprocessor, matrix_unit)

"""Builds the compiled module; metadata, dependencies and package data stand in pyproject.toml.

The environment variable SHARPMASK_NATIVE decides what happens where the module cannot be built:
auto (the default): the install goes on without it, and `sharpmask_kernels.available_backends()` tells why;
1: the install fails; 0: the module is left out. CXX, CXXFLAGS and LDFLAGS mean what they always mean.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from glob import glob
from pathlib import Path

import ninja
import pybind11
from ninja.ninja_syntax import Writer, escape
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# No contraction: results must not depend on which products a compiler fuses with which sums.
CXXFLAGS = [
    "-std=c++17",
    "-O3",
    "-ffp-contract=off",
    "-fno-trapping-math",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
]
# What csrc/cpu/simd is compiled for, as far as the compiler knows it. Which of them runs is chosen at run time.
ISAS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"],
}
SHARED = ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]


class BuildError(Exception):
    """Why the module cannot be built, in one line."""


def run(command: list[str]) -> None:
    name = Path(command[0]).name
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    except OSError as error:
        raise BuildError(f"{name}: {error.strerror}") from error
    print(done.stdout, end="", flush=True)
    if done.returncode != 0:
        errors = [line.strip() for line in done.stdout.splitlines() if "error:" in line]
        raise BuildError(f"{name}: {errors[0] if errors else f'exit status {done.returncode}'}")


def check_program(command: list[str], source: str) -> None:
    """Raises BuildError unless the C++ program compiles and links."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "check.cpp")
        path.write_text(source)
        run([*command, str(path), "-o", str(path.with_suffix(""))])


def find_compiler() -> list[str]:
    """$CXX, or the compiler that made this Python, or c++."""
    candidates = [os.environ.get("CXX"), sysconfig.get_config_var("CXX"), "c++"]
    commands = [shlex.split(candidate) for candidate in candidates if candidate]
    if not os.environ.get("CXX"):
        commands = [command for command in commands if shutil.which(command[0])] or commands
    try:
        check_program([*commands[0], "-std=c++17"], "#include <vector>\nint main() {}\n")
    except BuildError as error:
        raise BuildError(f"no working C++17 compiler: {error}") from error
    return commands[0]


def find_openmp(compiler: list[str]) -> list[str]:
    try:
        check_program([*compiler, "-fopenmp"], "#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n")
    except BuildError as error:
        print(f"without OpenMP, for one thread only: {error}")
        return []
    return ["-fopenmp"]


def find_isas(compiler: list[str]) -> dict[str, list[str]]:
    """The instruction sets that the compiler can compile for, each with its flags."""
    found = {}
    for isa, flags in ISAS.items():
        try:
            check_program([*compiler, *flags], "int main() {}\n")
        except BuildError as error:
            print(f"without kernels for {isa}: {error}")
        else:
            found[isa] = flags
    return found


def write_graph(path: Path, targets: dict[Path, list[str]]) -> None:
    """A ninja file that compiles the sources of every target and links them."""
    compiler = find_compiler()
    openmp = find_openmp(compiler)
    isas = find_isas(compiler)
    flags = [*CXXFLAGS, *openmp, *shlex.split(os.environ.get("CXXFLAGS", ""))]
    includes = [f"-isystem{folder}" for folder in (sysconfig.get_path("include"), pybind11.get_include())]
    defines = [f"-DSHARPMASK_FLAGS={json.dumps(shlex.join(flags))}", *(f"-DSHARPMASK_{isa.upper()}" for isa in isas)]
    ldflags = [*SHARED, *openmp, *shlex.split(os.environ.get("LDFLAGS", ""))]
    with path.open("w") as file:
        graph = Writer(file, width=1000)
        graph.variable("builddir", str(path.parent))
        graph.variable("cxx", escape(shlex.join(compiler)))
        graph.variable("cxxflags", escape(shlex.join(flags + includes + defines)))
        graph.variable("ldflags", escape(shlex.join(ldflags)))
        graph.rule("cxx", "$cxx $cxxflags $isaflags -MMD -MF $out.d -c $in -o $out", depfile="$out.d", deps="gcc")
        graph.rule("link", "$cxx $in -o $out $ldflags")
        for target, sources in targets.items():
            objects = []
            for source in sources:
                for isa, extra in isas.items() if Path(source).parent.name == "simd" else [("", [])]:
                    objects.append(str(path.parent / isa / f"{source}.o"))
                    isaflags = shlex.join([*extra, f"-DSHARPMASK_ISA={isa}"])
                    graph.build(objects[-1], "cxx", source, variables={"isaflags": isaflags})
            graph.build(str(target), "link", objects)


class NinjaBuild(build_ext):
    """One graph for all extensions; without them, their reason in a text file at their place."""

    def run(self) -> None:
        mode = os.environ.get("SHARPMASK_NATIVE", "auto")
        if mode not in ("auto", "1", "0"):
            sys.exit(f"SHARPMASK_NATIVE must be auto, 1 or 0, got {mode!r}")
        targets = {Path(self.get_ext_fullpath(ext.name)): ext.sources for ext in self.extensions}
        notes = [target.with_name(f"{target.name.partition('.')[0]}_missing.txt") for target in targets]
        try:
            if mode == "0":
                raise BuildError("left out by SHARPMASK_NATIVE=0")
            folder = Path(self.build_temp)
            folder.mkdir(parents=True, exist_ok=True)
            write_graph(folder / "build.ninja", targets)
            run([str(Path(ninja.BIN_DIR, "ninja")), "-v", "-f", str(folder / "build.ninja")])
        except BuildError as error:
            if mode == "1":
                sys.exit(f"SHARPMASK_NATIVE=1, and the compiled module cannot be built: {error}")
            print(f"warning: going on without the compiled module: {error}", file=sys.stderr)
            self.extensions = []  # nothing to copy into the package
            for target, note in zip(targets, notes, strict=True):
                target.unlink(missing_ok=True)  # of an earlier build
                note.parent.mkdir(parents=True, exist_ok=True)
                note.write_text(f"{error}\n")
        else:
            for note in notes:
                note.unlink(missing_ok=True)


setup(
    ext_modules=[
        Extension("sharpmask_kernels._cpu", ["csrc/bindings.cpp", *sorted(glob("csrc/cpu/**/*.cpp", recursive=True))])
    ],
    cmdclass={"build_ext": NinjaBuild},
)

"""Builds the compiled modules; metadata, dependencies and package data stand in pyproject.toml.

The environment variables SHARPMASK_NATIVE (the C++ kernels) and SHARPMASK_CUDA (the CUDA kernels) decide what happens
where a module cannot be built: auto (the default): the install goes on without it, and
`sharpmask_kernels.available_backends()` tells why; 1: the install fails; 0: the module is left out.
SHARPMASK_CUDA_ARCHS says which GPUs to compile for: compute capabilities as in "80;90", native (the GPUs of this
machine) or all. By default those of this machine, or without any, DEFAULT_FLAGS. PTX is added for later GPUs. CXX,
CXXFLAGS and LDFLAGS mean what they always mean; CUDACXX is nvcc.
"""

from __future__ import annotations

import json
import os
import runpy
import shlex
import shutil
import sys
import sysconfig
from glob import glob
from pathlib import Path

import ninja
import pybind11
from ninja.ninja_syntax import Writer, escape
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent / "csrc"))  # no build back end does it
from toolchain import (
    BuildError,
    asked_archs,
    find_compiler,
    find_isas,
    find_nvcc,
    find_openmp,
    find_targets,
    run,
    words,
)

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
# What reads the arguments of calls gains nothing from -O3, which takes a third longer.
BINDINGS = ["-O1"]
NVCCFLAGS = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", "--threads=0"]
UNITS = 3  # of each instruction set: enough to use several cores
SHARED = ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]


class Graph:
    """A ninja file that compiles the sources of every module and links them."""

    def __init__(self, folder: Path) -> None:
        self.compiler = find_compiler()
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.writer = Writer((folder / "build.ninja").open("w"), width=1000)
        self.writer.variable("builddir", str(folder))
        self.writer.variable("cxx", escape(shlex.join(self.compiler)))
        self._rule("cxx", "$cxx $flags -MMD -MF $out.d -c $in -o $out", depfile="$out.d", deps="gcc")
        self._rule("link", "$cxx $in -o $out $flags")

    def _rule(self, name: str, command: str, **more: str) -> None:
        self.writer.rule(name, command, description="$out", **more)

    def _compile(self, rule: str, sources: list[str], flags: list[str], folder: str = "") -> list[str]:
        objects = [str(self.folder / folder / f"{source}.o") for source in sources]
        for source, compiled in zip(sources, objects, strict=True):
            self.writer.build(compiled, rule, source, variables={"flags": escape(shlex.join(flags))})
        return objects

    def _cxx(self, sources: list[str], flags: list[str], folder: str = "") -> list[str]:
        return self._compile("cxx", sources, [*CXXFLAGS, *flags, *words("CXXFLAGS")], folder)

    def _bindings(self, sources: list[str], flags: list[str]) -> list[str]:
        includes = [f"-isystem{folder}" for folder in (sysconfig.get_path("include"), pybind11.get_include())]
        of_kernels = shlex.join([*CXXFLAGS, *flags, *words("CXXFLAGS")])
        return self._cxx(sources, [*flags, *BINDINGS, *includes, f"-DSHARPMASK_FLAGS={json.dumps(of_kernels)}"])

    def add_cpu(self, target: str, sources: list[str]) -> str:
        """Returns what is compiled for."""
        openmp = find_openmp(self.compiler)
        flags = [*SHARED, *openmp, *words("LDFLAGS")]
        isas = find_isas(self.compiler)
        known = [f"-DSHARPMASK_{isa.upper()}" for isa in isas]
        bindings, simd = in_folder("python", sources), in_folder("simd", sources)
        objects = self._bindings(bindings, [*openmp, *known])
        objects += self._cxx([s for s in sources if s not in bindings + simd], [*openmp, *known])
        for isa, extra in isas.items():
            fp64 = ["-DSHARPMASK_FP64"] if isa == next(iter(isas)) else []
            for first, *rest in units(simd):
                together = [f"-include{source}" for source in rest]
                objects += self._cxx([first], [*openmp, *extra, *fp64, f"-DSHARPMASK_ISA={isa}", *together], isa)
        self.writer.build(target, "link", objects, variables={"flags": escape(shlex.join(flags))})
        return ", ".join(isas)

    def add_cuda(self, target: str, sources: list[str]) -> str:
        """Returns what is compiled for."""
        nvcc = find_nvcc()
        targets = find_targets(nvcc)
        host = ["-ccbin", shlex.join(self.compiler), "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra"]
        command = escape(shlex.join(nvcc))
        self._rule("nvcc", f"{command} $flags -MMD -MF $out.d -c $in -o $out", depfile="$out.d", deps="gcc")
        self._rule("nvlink", f"{command} -shared -cudart=static $flags $in -o $out")
        bindings = in_folder("python", sources)
        kernels = [source for source in sources if source not in bindings]
        objects = self._compile("nvcc", kernels, [*NVCCFLAGS, *targets.flags, *host])
        objects += self._bindings(bindings, [])
        self.writer.build(target, "nvlink", objects, variables={"flags": escape(shlex.join(host))})
        return targets.text

    def build(self, targets: list[str]) -> dict[str, BuildError]:
        """Builds the targets and returns those that failed, each with the reason."""
        self.writer.close()
        command = [str(Path(ninja.BIN_DIR, "ninja")), "-f", str(self.folder / "build.ninja")]
        try:
            run([*command, "-k", "0", *targets])
        except BuildError as error:
            if len(targets) == 1:
                return {targets[0]: error}
            # Which failed, and why, shows only when they are built one at a time.
            return {target: reason for target in targets for reason in self.build([target]).values()}
        return {}


def units(sources: list[str]) -> list[list[str]]:
    """Which sources are compiled together: what all of them include takes about as long to read as they to compile."""
    found: list[list[str]] = [[] for _ in range(UNITS)]
    lengths = [0] * UNITS
    for source in sorted(sources, key=lambda source: -Path(source).stat().st_size):
        shortest = lengths.index(min(lengths))
        found[shortest].append(source)
        lengths[shortest] += Path(source).stat().st_size
    return [unit for unit in found if unit]


def in_folder(name: str, sources: list[str]) -> list[str]:
    return [source for source in sources if Path(source).parent.name == name]


class NinjaBuild(build_ext):
    """Builds all extensions with one graph. A text file beside each says what it was compiled from and for; where one
    cannot be built, another says why."""

    def run(self) -> None:
        asked_archs()  # a wrong value ends it here
        paths = {ext.name: Path(self.get_ext_fullpath(ext.name)) for ext in self.extensions}
        self.purposes: dict[str, str] = {}
        reasons = self._build({ext.name: ext.sources for ext in self.extensions}, paths)
        for name, path in paths.items():
            note(path, "missing").unlink(missing_ok=True)
            note(path, "built").unlink(missing_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            if name not in reasons:
                built = {"sources": digest(Path("csrc"), name.rpartition(".")[2]), "for": self.purposes[name]}
                note(path, "built").write_text(json.dumps(built))
                print(f"{name}: compiled for {built['for']}")
                continue
            variable = VARIABLES[name]
            if mode(variable) == "1":
                sys.exit(f"{variable}=1, and {name} cannot be built: {reasons[name]}")
            print(f"warning: going on without {name}: {reasons[name]}", file=sys.stderr)
            path.unlink(missing_ok=True)  # of an earlier build
            note(path, "missing").write_text(f"{reasons[name]}\n")
        self.extensions = [ext for ext in self.extensions if ext.name not in reasons]  # to be copied into the package

    def _build(self, sources: dict[str, list[str]], paths: dict[str, Path]) -> dict[str, BuildError]:
        """Builds the modules and returns those that could not be built, each with the reason."""
        left_out = [name for name in sources if mode(VARIABLES[name]) == "0"]
        reasons = {name: BuildError(f"left out by {VARIABLES[name]}=0") for name in left_out}
        # nvcc takes longest, so its sources come first.
        wanted = sorted((name for name in sources if name not in reasons), key=lambda name: name.endswith("_cpu"))
        try:
            graph = Graph(Path(self.build_temp)) if wanted else None
        except BuildError as error:
            return reasons | dict.fromkeys(wanted, error)
        for name in wanted:
            add = graph.add_cuda if name.endswith("_cuda") else graph.add_cpu
            try:
                self.purposes[name] = add(str(paths[name]), sources[name])
                print(f"{name}: compiling for {self.purposes[name]}; {VARIABLES[name]}=0 leaves it out", flush=True)
            except BuildError as error:
                reasons[name] = error
        targets = {str(paths[name]): name for name in wanted if name not in reasons}
        failed = graph.build(list(targets)) if targets else {}
        return reasons | {targets[target]: error for target, error in failed.items()}


def note(module: Path, kind: str) -> Path:
    """The text file beside a compiled module that holds what was ``built``, or why it is ``missing``."""
    return module.with_name(f"{module.name.partition('.')[0]}_{kind}.txt")


class FreshBuild(build_py):
    """Copies the Python files into an empty folder: pip would install what an older version left there."""

    def run(self) -> None:
        if not self.editable_mode:
            for package in ("sharpmask", "sharpmask_kernels"):
                shutil.rmtree(Path(self.build_lib, package), ignore_errors=True)
        super().run()


VARIABLES = {"sharpmask_kernels._cpu": "SHARPMASK_NATIVE", "sharpmask_kernels._cuda": "SHARPMASK_CUDA"}


def mode(variable: str) -> str:
    value = os.environ.get(variable) or "auto"
    if value not in ("auto", "1", "0"):
        sys.exit(f"{variable} must be auto, 1 or 0, got {value!r}")
    return value


def digest(csrc: Path, module: str) -> str:
    """By sharpmask_kernels/sources.py, which the package compares with: importing the package would need PyTorch."""
    found: str = runpy.run_path("sharpmask_kernels/sources.py")["digest"](csrc, module)
    return found


if __name__ == "__main__":
    setup(
        ext_modules=[
            Extension(
                "sharpmask_kernels._cpu", ["csrc/python/cpu.cpp", *sorted(glob("csrc/cpu/**/*.cpp", recursive=True))]
            ),
            Extension("sharpmask_kernels._cuda", ["csrc/python/cuda.cpp", *sorted(glob("csrc/cuda/*.cu"))]),
        ],
        cmdclass={"build_ext": NinjaBuild, "build_py": FreshBuild},
    )

"""Builds the compiled modules; metadata, dependencies and package data stand in pyproject.toml.

The environment variables SHARPMASK_NATIVE (the C++ kernels) and SHARPMASK_CUDA (the CUDA kernels) decide what happens
where a module cannot be built: auto (the default): the install goes on without it, and
`sharpmask_kernels.available_backends()` tells why; 1: the install fails; 0: the module is left out.
SHARPMASK_CUDA_ARCHS lists the GPUs to compile for, as in "80;90"; the default is those of ARCHS that nvcc knows. For
the newest there is PTX too, which later GPUs compile. CXX, CXXFLAGS and LDFLAGS mean what they always mean; CUDACXX is
nvcc.
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
# The compute capabilities of GPUs from Turing (2018) on.
ARCHS = ("75", "80", "86", "89", "90", "100", "120")
NVCCFLAGS = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", "--threads=0"]
# The instruction sets that csrc/cpu/simd is compiled for, if the compiler knows them. One is chosen at run time.
ISAS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"],
}
SHARED = ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]


class BuildError(Exception):
    """A module cannot be built; the message says why in one line."""


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


def find_nvcc() -> str:
    """$CUDACXX, nvcc on the path, or that of $CUDA_HOME or /usr/local/cuda."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")
    if nvcc is None:
        raise BuildError("no nvcc found: install the CUDA toolkit, or set CUDACXX or CUDA_HOME")
    return nvcc


def find_archs(nvcc: str) -> list[str]:
    """The compute capabilities to compile for, the newest last."""
    given = os.environ.get("SHARPMASK_CUDA_ARCHS")
    if given:
        return [arch for arch in given.replace(",", ";").split(";") if arch]
    try:
        known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(f"{nvcc} does not work: {error}") from error
    return [arch for arch in ARCHS if f"compute_{arch}" in known]


class Graph:
    """A ninja file that compiles the sources of every module and links them."""

    def __init__(self, folder: Path) -> None:
        self.compiler = find_compiler()
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.writer = Writer((folder / "build.ninja").open("w"), width=1000)
        self.writer.variable("builddir", str(folder))
        self.writer.variable("cxx", escape(shlex.join(self.compiler)))
        self.writer.rule("cxx", "$cxx $flags -MMD -MF $out.d -c $in -o $out", depfile="$out.d", deps="gcc")
        self.writer.rule("link", "$cxx $in -o $out $flags")

    def _compile(self, rule: str, sources: list[str], flags: list[str], folder: str = "") -> list[str]:
        objects = [str(self.folder / folder / f"{source}.o") for source in sources]
        for source, compiled in zip(sources, objects, strict=True):
            self.writer.build(compiled, rule, source, variables={"flags": escape(shlex.join(flags))})
        return objects

    def _cxx(self, sources: list[str], flags: list[str], folder: str = "") -> list[str]:
        includes = [f"-isystem{folder}" for folder in (sysconfig.get_path("include"), pybind11.get_include())]
        flags = [*CXXFLAGS, *flags, *shlex.split(os.environ.get("CXXFLAGS", ""))]
        defines = [f"-DSHARPMASK_FLAGS={json.dumps(shlex.join(flags))}"]
        return self._compile("cxx", sources, [*flags, *includes, *defines], folder)

    def add_cpu(self, target: str, sources: list[str]) -> None:
        openmp = find_openmp(self.compiler)
        flags = [*SHARED, *openmp, *shlex.split(os.environ.get("LDFLAGS", ""))]
        isas = find_isas(self.compiler)
        simd = [source for source in sources if Path(source).parent.name == "simd"]
        known = [f"-DSHARPMASK_{isa.upper()}" for isa in isas]
        objects = self._cxx([source for source in sources if source not in simd], [*openmp, *known])
        for isa, extra in isas.items():
            objects += self._cxx(simd, [*openmp, *extra, f"-DSHARPMASK_ISA={isa}"], isa)
        self.writer.build(target, "link", objects, variables={"flags": escape(shlex.join(flags))})

    def add_cuda(self, target: str, sources: list[str]) -> None:
        nvcc = find_nvcc()
        archs = find_archs(nvcc)
        codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
        codes.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
        host = ["-ccbin", shlex.join(self.compiler), "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra"]
        self.writer.rule("nvcc", f"{escape(nvcc)} $flags -MMD -MF $out.d -c $in -o $out", depfile="$out.d", deps="gcc")
        self.writer.rule("nvlink", f"{escape(nvcc)} -shared -cudart=static $flags $in -o $out")
        objects = self._compile("nvcc", [s for s in sources if s.endswith(".cu")], [*NVCCFLAGS, *codes, *host])
        objects += self._cxx([s for s in sources if s.endswith(".cpp")], [])
        self.writer.build(target, "nvlink", objects, variables={"flags": escape(shlex.join(host))})

    def build(self, targets: list[str]) -> dict[str, BuildError]:
        """Builds the targets and returns those that failed, each with the reason."""
        self.writer.close()
        command = [str(Path(ninja.BIN_DIR, "ninja")), "-v", "-f", str(self.folder / "build.ninja")]
        try:
            run([*command, "-k", "0", *targets])
        except BuildError as error:
            if len(targets) == 1:
                return {targets[0]: error}
            # Which failed, and why, shows only when they are built one at a time.
            return {target: reason for target in targets for reason in self.build([target]).values()}
        return {}


class NinjaBuild(build_ext):
    """Builds all extensions with one graph; where one cannot be built, writes the reason to a text file instead."""

    def run(self) -> None:
        paths = {ext.name: Path(self.get_ext_fullpath(ext.name)) for ext in self.extensions}
        reasons = self._build({ext.name: ext.sources for ext in self.extensions}, paths)
        for name, path in paths.items():
            note = path.with_name(f"{path.name.partition('.')[0]}_missing.txt")
            note.unlink(missing_ok=True)
            if name in reasons:
                variable = VARIABLES[name]
                if mode(variable) == "1":
                    sys.exit(f"{variable}=1, and {name} cannot be built: {reasons[name]}")
                print(f"warning: going on without {name}: {reasons[name]}", file=sys.stderr)
                path.unlink(missing_ok=True)  # of an earlier build
                note.parent.mkdir(parents=True, exist_ok=True)
                note.write_text(f"{reasons[name]}\n")
        self.extensions = [ext for ext in self.extensions if ext.name not in reasons]  # to be copied into the package

    def _build(self, sources: dict[str, list[str]], paths: dict[str, Path]) -> dict[str, BuildError]:
        """Builds the modules and returns those that could not be built, each with the reason."""
        left_out = [name for name in sources if mode(VARIABLES[name]) == "0"]
        reasons = {name: BuildError(f"left out by {VARIABLES[name]}=0") for name in left_out}
        wanted = [name for name in sources if name not in reasons]
        try:
            graph = Graph(Path(self.build_temp)) if wanted else None
        except BuildError as error:
            return reasons | dict.fromkeys(wanted, error)
        for name in wanted:
            add = graph.add_cuda if name.endswith("_cuda") else graph.add_cpu
            try:
                add(str(paths[name]), sources[name])
            except BuildError as error:
                reasons[name] = error
        targets = {str(paths[name]): name for name in wanted if name not in reasons}
        failed = graph.build(list(targets)) if targets else {}
        return reasons | {targets[target]: error for target, error in failed.items()}


VARIABLES = {"sharpmask_kernels._cpu": "SHARPMASK_NATIVE", "sharpmask_kernels._cuda": "SHARPMASK_CUDA"}


def mode(variable: str) -> str:
    value = os.environ.get(variable, "auto")
    if value not in ("auto", "1", "0"):
        sys.exit(f"{variable} must be auto, 1 or 0, got {value!r}")
    return value


setup(
    ext_modules=[
        Extension(
            "sharpmask_kernels._cpu", ["csrc/python/cpu.cpp", *sorted(glob("csrc/cpu/**/*.cpp", recursive=True))]
        ),
        Extension("sharpmask_kernels._cuda", ["csrc/python/cuda.cpp", *sorted(glob("csrc/cuda/*.cu"))]),
    ],
    cmdclass={"build_ext": NinjaBuild},
)

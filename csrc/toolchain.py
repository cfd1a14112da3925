"""The compilers that are here and what they can compile for. setup.py imports this file."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

# The instruction sets that csrc/cpu/simd is compiled for, if the compiler knows them. One is chosen at run time.
# The first is what every processor of its kind can run.
ISAS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"],
}
ARM_ISAS: dict[str, list[str]] = {"neon": []}
# The compute capabilities of GPUs from Turing (2018) on.
ARCHS = ("75", "80", "86", "89", "90", "100", "120")
# Without a GPU, what most servers have; the driver translates PTX for all others. More would take minutes. By way of
# compute_75, the code for 8.0 and 9.0 would have no instructions for matrices of 16-bit numbers.
DEFAULT_FLAGS = ("-gencode=arch=compute_80,code=[sm_80,sm_90]", "-gencode=arch=compute_75,code=compute_75")


class BuildError(Exception):
    """A module cannot be built; the message says why in one line."""


def run(command: list[str]) -> None:
    """Prints what the command prints, line by line. Raises BuildError with its first error if it fails."""
    name = Path(command[0]).name
    lines = []
    try:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                lines.append(line.strip())
    except OSError as error:
        raise BuildError(f"{name}: {error.strerror}") from error
    if process.returncode != 0:
        raise BuildError(first_error(lines) or f"{name}: {exit_status(process.returncode)}")


ERROR = re.compile(
    r"\b(error|fatal|killed|out of memory|memory exhausted|undefined reference|cannot find|not found"
    r"|no space left|permission denied)\b",
    re.IGNORECASE,
)


def first_error(lines: Sequence[str]) -> str | None:
    """The first line that tells of an error, of a compiler, a linker or of ninja."""
    for before, line in zip(["", *lines], lines, strict=False):
        # Not the command that ninja repeats, nor its progress.
        if before.startswith("FAILED: ") or line.startswith(("FAILED: ", "[", "ninja: ")) or "warning:" in line:
            continue
        if ERROR.search(line) and line != "Killed":  # that names nothing
            return line[:300]
    # A compiler that was killed may have said nothing.
    codes = [re.match(r"FAILED: \[code=(\d+)\] (.*)", line) for line in lines]
    told = [f"{Path(code[2].strip()).name}: {exit_status(int(code[1]))}" for code in codes if code]
    return told[0] if told else next((line for line in lines if line.startswith("ninja: error")), None)


def exit_status(code: int) -> str:
    signal = -code if code < 0 else code - 128
    return "killed, perhaps for want of memory" if signal == 9 else f"exit status {code}"


def words(variable: str) -> list[str]:
    """The command or flags that an environment variable holds."""
    value = os.environ.get(variable, "")
    if Path(value).is_file():  # its folder may have a space in its name
        return [value]
    try:
        return shlex.split(value)
    except ValueError as error:
        sys.exit(f"{variable} must be words as a shell reads them, got {value!r}: {error}")


def check_program(command: list[str], source: str) -> None:
    """Raises BuildError unless the C++ program compiles and links."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "check.cpp")
        path.write_text(source)
        run([*command, str(path), "-o", str(path.with_suffix(""))])


def find_compiler() -> list[str]:
    """$CXX, or the compiler that made this Python, or c++."""
    candidates = [shlex.split(sysconfig.get_config_var("CXX") or ""), ["c++"]]
    found = [command for command in candidates if command and shutil.which(command[0])]
    compiler = words("CXX") or (found or candidates[1:])[0]
    try:
        check_program([*compiler, "-std=c++17"], "#include <vector>\nint main() {}\n")
    except BuildError as error:
        raise BuildError(f"no working C++17 compiler: {error}") from error
    return compiler


def find_openmp(compiler: list[str]) -> list[str]:
    try:
        check_program([*compiler, "-fopenmp"], "#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n")
    except BuildError as error:
        print(f"without OpenMP, for one thread only: {error}")
        return []
    return ["-fopenmp"]


def find_isas(compiler: list[str]) -> dict[str, list[str]]:
    """The instruction sets that the compiler can compile for, each with its flags."""
    target = subprocess.run([*compiler, "-dumpmachine"], stdout=subprocess.PIPE, text=True).stdout
    found = {}
    for isa, flags in (ARM_ISAS if target.startswith(("aarch64", "arm64")) else ISAS).items():
        try:
            check_program([*compiler, *flags], "int main() {}\n")
        except BuildError as error:
            print(f"without kernels for {isa}: {error}")
        else:
            found[isa] = flags
    return found


def find_nvcc() -> list[str]:
    """$CUDACXX, nvcc on the path, or that of $CUDA_HOME or /usr/local/cuda."""
    home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")
    command = words("CUDACXX") or ([nvcc] if nvcc else [])
    if not command:
        raise BuildError("no nvcc found: install the CUDA toolkit, or set CUDACXX or CUDA_HOME")
    return command


def asked_archs() -> list[str]:
    """$SHARPMASK_CUDA_ARCHS: compute capabilities without their dot, the newest last, or all, or native, or none."""
    variable = "SHARPMASK_CUDA_ARCHS"
    value = os.environ.get(variable, "").strip()
    names = [name for name in re.split(r"[;,\s]+", value) if name]
    if not value or names in (["all"], ["native"]):
        return names
    found = [re.fullmatch(r"(?:sm_|compute_)?(\d{1,2})\.?(\d[af]?)", name) for name in names]
    if not all(found) or not found:
        sys.exit(f"{variable} must be compute capabilities as in 80;90, or native, or all, got {value!r}")
    return sorted({match[1] + match[2] for match in found if match}, key=number)


def number(arch: str) -> int:
    return int(arch.rstrip("af"))


def dotted(arch: str) -> str:
    return re.sub(r"(\d[af]?)$", r".\1", arch)


def known_archs(nvcc: list[str]) -> list[str]:
    command = [*nvcc, "--list-gpu-arch"]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    except OSError as error:
        raise BuildError(f"{nvcc[0]} does not work: {error.strerror}") from error
    found = re.findall(r"^compute_(\d+)$", done.stdout, re.MULTILINE)
    if done.returncode != 0 or not found:
        status = exit_status(done.returncode) if done.returncode else "it names no GPU for --list-gpu-arch"
        said = first_error(done.stdout.splitlines()) or status
        raise BuildError(f"{nvcc[0]} does not work: {said}")
    return sorted(found, key=int)


def gpus() -> list[str]:
    """The compute capabilities of this machine's GPUs, as the driver tells them."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    found = re.findall(r"^(\d+)\.(\d)\s*$", done.stdout, re.MULTILINE) if done.returncode == 0 else []
    return sorted({major + minor for major, minor in found}, key=int)


class Targets(NamedTuple):
    """The GPUs that are compiled for."""

    flags: list[str]  # of nvcc
    text: str

    @staticmethod
    def of(archs: list[str], why: str) -> Targets:
        """Code for each, and PTX of the last."""
        flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
        flags.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
        names = ", ".join(map(dotted, archs))
        return Targets(flags, f"compute capability {names}, later ones by PTX ({why})")


def find_targets(nvcc: list[str]) -> Targets:
    asked, known = asked_archs(), known_archs(nvcc)
    if asked == ["all"]:
        return Targets.of([arch for arch in ARCHS if arch in known], "all")
    if asked not in ([], ["native"]):
        unknown = [arch for arch in asked if str(number(arch)) not in known]
        if unknown:
            those = f"{', '.join(unknown)}: it knows {', '.join(known)}"
            sys.exit(f"SHARPMASK_CUDA_ARCHS names what {nvcc[0]} does not know, {those}")
        return Targets.of(asked, "SHARPMASK_CUDA_ARCHS")
    here = gpus()
    if here:
        # A GPU newer than nvcc is served by PTX of the newest that nvcc knows.
        served = {max((k for k in known if int(k) <= int(gpu)), key=int, default="") for gpu in here} - {""}
        if not served:
            raise BuildError(f"{nvcc[0]} does not compile for the GPU here, of compute capability {dotted(here[-1])}")
        return Targets.of(sorted(served, key=int), "the GPUs of the machine that compiled it")
    if asked:
        sys.exit("SHARPMASK_CUDA_ARCHS=native needs a GPU, and nvidia-smi shows none")
    if not {"75", "80", "90"} <= set(known):
        return Targets.of(
            [arch for arch in ARCHS if arch in known][:1] or known[-1:], "no GPU was there to compile for"
        )
    return Targets([*DEFAULT_FLAGS], "compute capability 8.x and 9.0, others by PTX (no GPU was there to compile for)")

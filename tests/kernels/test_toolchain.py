"""What setup.py finds out about compilers and GPUs, and what it says about wrong settings."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def toolchain() -> ModuleType:
    spec = importlib.util.spec_from_file_location("toolchain", ROOT / "csrc" / "toolchain.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["toolchain"] = module  # for its annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """Makes a program of a shell script, the first on the path."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("SHARPMASK_CUDA_ARCHS", raising=False)

    def make(name: str, script: str) -> str:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return str(path)

    return make


NVCC = "printf 'compute_75\\ncompute_80\\ncompute_90\\ncompute_100\\n'"


@pytest.mark.parametrize(
    ("value", "archs"),
    [
        ("", []),
        (" ", []),
        ("90", ["90"]),
        ("90;80", ["80", "90"]),
        ("9.0,8.0", ["80", "90"]),
        ("sm_90 compute_80", ["80", "90"]),
        ("90;;90;9.0;", ["90"]),
        ("12.0;100;75", ["75", "100", "120"]),
        ("90a", ["90a"]),
        ("all", ["all"]),
        ("native", ["native"]),
    ],
)
def test_archs(toolchain: ModuleType, monkeypatch: pytest.MonkeyPatch, value: str, archs: list[str]) -> None:
    monkeypatch.setenv("SHARPMASK_CUDA_ARCHS", value)
    assert toolchain.asked_archs() == archs


@pytest.mark.parametrize(
    "value", [";", "abc", "90;abc", "9", "-90", "90+PTX", "all;90", "ALL", "Ampere", "9.0.0", "٩٠x"]
)
def test_wrong_archs(toolchain: ModuleType, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SHARPMASK_CUDA_ARCHS", value)
    expected = f"SHARPMASK_CUDA_ARCHS must be compute capabilities as in 80;90, or native, or all, got {value!r}"
    with pytest.raises(SystemExit) as error:
        toolchain.asked_archs()
    assert error.value.code == expected


def flags(*archs: str) -> list[str]:
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    return [*codes, f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}"]


@pytest.mark.parametrize(
    ("asked", "gpus", "expected"),
    [
        ("", "9.0", flags("90")),
        ("", "9.0\\n8.0\\n9.0", flags("80", "90")),
        ("", "12.1", flags("100")),  # newer than nvcc
        ("", "6.1\\n8.0", flags("80")),
        ("native", "8.0", flags("80")),
        ("75", "9.0", flags("75")),
        ("all", "9.0", flags("75", "80", "90", "100")),
        (
            "",
            "[N/A]",
            # By way of compute_75, the code for 8.0 and 9.0 would have no matrix instructions of 16-bit numbers.
            ["-gencode=arch=compute_80,code=[sm_80,sm_90]", "-gencode=arch=compute_75,code=compute_75"],
        ),
    ],
)
def test_targets(
    toolchain: ModuleType,
    program: Callable[[str, str], str],
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
    gpus: str,
    expected: list[str],
) -> None:
    program("nvidia-smi", f"printf '{gpus}\\n'")
    monkeypatch.setenv("SHARPMASK_CUDA_ARCHS", asked)
    assert toolchain.find_targets([program("nvcc", NVCC)]).flags == expected


def test_targets_that_cannot_be(
    toolchain: ModuleType, program: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nvcc = [program("nvcc", NVCC)]
    program("nvidia-smi", "echo 6.1")
    with pytest.raises(toolchain.BuildError, match=r"does not compile for the GPU here, of compute capability 6\.1"):
        toolchain.find_targets(nvcc)
    program("nvidia-smi", "exit 9")
    monkeypatch.setenv("SHARPMASK_CUDA_ARCHS", "native")
    with pytest.raises(SystemExit, match="needs a GPU, and nvidia-smi shows none"):
        toolchain.find_targets(nvcc)
    monkeypatch.setenv("SHARPMASK_CUDA_ARCHS", "52;90;99")
    with pytest.raises(SystemExit, match="does not know, 52, 99: it knows 75, 80, 90, 100"):
        toolchain.find_targets(nvcc)
    program("nvcc", "echo 'nvcc fatal   : no licence'; exit 1")
    with pytest.raises(toolchain.BuildError, match="does not work: nvcc fatal   : no licence"):
        toolchain.find_targets(nvcc)


SAID = {
    "FAILED: x.o\nnvcc -c error.cu\nnvcc fatal   : Unsupported gpu\nninja: x": "nvcc fatal   : Unsupported gpu",
    "[1/2] x.o\nptxas fatal   : Memory allocation failure": "ptxas fatal   : Memory allocation failure",
    "a.cpp:1: warning: fatal\na.cpp:3:1: error: no\na.cpp:4: error: more": "a.cpp:3:1: error: no",
    "g++: fatal error: Killed signal\ncompilation terminated.": "g++: fatal error: Killed signal",
    "ld: cannot find -lcuda\ncollect2: error: ld returned 1": "ld: cannot find -lcuda",
    "x.o: undefined reference to `f'\ncollect2: error: ld": "x.o: undefined reference to `f'",
    "cc1plus: out of memory allocating 65536 bytes": "cc1plus: out of memory allocating 65536 bytes",
    "FAILED: [code=137] b/x.o\ng++ -c x": "x.o: killed, perhaps for want of memory",
    "FAILED: [code=137] b/y.o\ng++ -c y\nKilled": "y.o: killed, perhaps for want of memory",
    "FAILED: [code=3] b/x.o\ng++ -c x": "x.o: exit status 3",
    "ninja: error: 'a.cpp', needed by 'a.o', missing": "ninja: error: 'a.cpp', needed by 'a.o', missing",
}


@pytest.mark.parametrize(("said", "reason"), SAID.items())
def test_the_first_error_is_kept(toolchain: ModuleType, said: str, reason: str) -> None:
    assert toolchain.first_error(said.splitlines()) == reason


def test_a_failed_program_says_why(toolchain: ModuleType, program: Callable[[str, str], str]) -> None:
    silent, killed = program("silent", "exit 4"), program("killed", "kill -9 $$")
    for command, reason in (
        (silent, "silent: exit status 4"),
        (killed, "killed: killed, perhaps for want of memory"),
        ("/no/such", "such: No such file or directory"),
    ):
        with pytest.raises(toolchain.BuildError) as error:
            toolchain.run([command])
        assert str(error.value) == reason


def test_words(toolchain: ModuleType, program: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    for value, expected in (("", []), ("ccache g++", ["ccache", "g++"]), (program("a b", ""), [program("a b", "")])):
        monkeypatch.setenv("CXX", value)
        assert toolchain.words("CXX") == expected
    monkeypatch.setenv("CXX", "g++ '")
    with pytest.raises(SystemExit, match="CXX must be words as a shell reads them"):
        toolchain.words("CXX")


COMPILER = 'while [ $# -gt 0 ]; do [ "$1" = -o ] && : > "$2"; shift; done'


def build(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "setup.py",
        "build_ext",
        "--build-lib",
        f"{tmp_path}/lib",
        "--build-temp",
        f"{tmp_path}/o",
    ]
    variables = {"SHARPMASK_NATIVE": "0", "SHARPMASK_CUDA": "auto", "CXX": f"{tmp_path}/c++", **environment}
    return subprocess.run(command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("variable", "value", "error"),
    [
        ("SHARPMASK_NATIVE", "yes", "SHARPMASK_NATIVE must be auto, 1 or 0, got 'yes'"),
        ("SHARPMASK_CUDA", "2", "SHARPMASK_CUDA must be auto, 1 or 0, got '2'"),
        ("SHARPMASK_CUDA_ARCHS", ";", "SHARPMASK_CUDA_ARCHS must be compute capabilities"),
        ("CXXFLAGS", "'", "CXXFLAGS must be words as a shell reads them"),
    ],
)
def test_wrong_settings_end_a_build_with_one_line(
    tmp_path: Path, program: Callable[[str, str], str], variable: str, value: str, error: str
) -> None:
    program("c++", COMPILER)
    program("nvcc", NVCC)
    done = build(tmp_path, **{variable: value})
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(error)
    assert "Traceback" not in done.stderr


def test_what_nvcc_says_is_the_reason(tmp_path: Path, program: Callable[[str, str], str]) -> None:
    program("c++", COMPILER)
    program("nvcc", f'[ $1 = --list-gpu-arch ] && {NVCC} && exit; echo "nvcc fatal   : Unsupported gpu"; exit 1')
    done = build(tmp_path)
    assert done.returncode == 0, done.stderr
    package = tmp_path / "lib" / "sharpmask_kernels"
    assert (package / "_cuda_missing.txt").read_text() == "nvcc fatal   : Unsupported gpu\n"
    assert "warning: going on without sharpmask_kernels._cuda: nvcc fatal   : Unsupported gpu" in done.stderr


def test_a_build_says_what_it_compiles_for(tmp_path: Path, program: Callable[[str, str], str]) -> None:
    program("c++", COMPILER)
    program("nvcc", f"[ $1 = --list-gpu-arch ] && {NVCC} && exit; {COMPILER}")
    done = build(tmp_path, SHARPMASK_CUDA_ARCHS="90")
    assert done.returncode == 0, done.stderr
    told = "sharpmask_kernels._cuda: compiling for compute capability 9.0, later ones by PTX (SHARPMASK_CUDA_ARCHS); "
    assert f"{told}SHARPMASK_CUDA=0 leaves it out" in done.stdout
    package = tmp_path / "lib" / "sharpmask_kernels"
    assert (package / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}").exists()
    assert "compute capability 9.0" in (package / "_cuda_built.txt").read_text()

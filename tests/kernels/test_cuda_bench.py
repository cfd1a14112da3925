"""What is said of the CUDA kernels where there is no GPU, and TensorRT as a peer."""

from __future__ import annotations

import dataclasses
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import tensorrt_peer
from bench.workloads.gather_windows import GatherWindows
from bench.workloads.refinement import MergeUpsample
from tools.aot import cuda as gates

from ..contract.inputs import windows_at


def test_tensorrt_takes_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, looping = MergeUpsample(2, 3, 4), GatherWindows(windows_at((0, 0, 0, 0)), 2, 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert tensorrt_peer.obstacle(plain, False) is None
    assert "gradients" in str(tensorrt_peer.obstacle(plain, True))
    assert "no layers" in str(tensorrt_peer.obstacle(looping, False))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert tensorrt_peer.obstacle(plain, False) == "torch_tensorrt is not installed"


def test_tensorrt_is_given_the_module_and_the_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def compile(module: torch.nn.Module, **options: Any) -> torch.nn.Module:
        given.update(options, module=module)
        return module

    monkeypatch.setitem(sys.modules, "torch_tensorrt", SimpleNamespace(compile=compile))  # type: ignore[misc]
    plain, inputs = MergeUpsample(2, 3, 4), (torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, 4))
    assert tensorrt_peer.prepare(plain, inputs)(*inputs).shape == (1, 4, 8, 8)
    assert given["module"] is plain and given["inputs"] == list(inputs) and given["disable_tf32"]


GOOD = gates.Kernel("refine_kernel<Half>", "90a", 128, 0, 9000, 900, 0, (30, 20), {128: 2, 64: 6, 16: 9}, 90_000, 2)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({}, None),
        ({"spills": 8}, "8 bytes spilled"),
        ({"blocks": 1}, "1 blocks on a multiprocessor, must be at least 2"),
        ({"blocks": 1, "arch": "80"}, None),
        ({"loads": {128: 1, 64: 6}}, "1 loads of maps of 128 bits, must be at least 2"),
        ({"loads": {128: 8}}, "0 loads of maps of 64 bits, must be at least 6"),
        ({"name": "refine_kernel<float>"}, "2 loads of maps of 128 bits, must be at least 10"),
        ({"name": "gather_kernel<uint4, true>", "loads": {}}, "0 loads of maps of 128 bits, must be at least 1"),
        ({"name": "gather_kernel<unsigned short, true>", "loads": {}}, None),
    ],
)
def test_gates_of_compiled_kernels(change: dict[str, Any], fault: str | None) -> None:
    assert list(dataclasses.replace(GOOD, **change).faults()) == ([] if fault is None else [fault])


CODE = """\tFunction : _Z13refine_kernelIfEvv
        /*0000*/                   LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;  /* 0x0 */
        /*0010*/                   LDG.E.128 R4, desc[UR4][R8.64] ;           /* 0x0 */
        /*0020*/                   IADD3 R0, R0, 0x1, RZ ;                    /* 0x0 */
        /*0030*/                   LDS R1, [R0] ;                             /* 0x0 */
        /*0040*/                   FFMA R1, R1, R2, R3 ;                      /* 0x0 */
        /*0050*/                   FFMA R1, R1, R2, R3 ;                      /* 0x0 */
        /*0060*/              @P0  BRA 0x30 ;                                 /* 0x0 */
        /*0070*/               @P1 LDG.E.U16.CONSTANT R4, desc[UR4][R2.64] ;  /* 0x0 */
        /*0080*/              @!P1 BRA 0x20 ;                                 /* 0x0 */
        /*0090*/                   BRA 0x90 ;                                 /* 0x0 */
"""
LOG = """Compiling entry function '_Z13refine_kernelIfEvv' for 'sm_90a'
    0 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
    Used 100 registers"""


def test_machine_code_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "plan", lambda arch: {"shared_bytes": 100_000})
    (kernel,) = gates._read("90a", LOG, CODE)
    assert kernel.name == "refine_kernel<float>"
    assert (kernel.registers, kernel.spills, kernel.instructions, kernel.fmas) == (100, 12, 10, 2)
    assert kernel.loads == {128: 1, 16: 1}  # of maps
    assert kernel.inner == (4, 2)
    assert kernel.blocks == 2

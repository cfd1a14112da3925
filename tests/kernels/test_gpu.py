"""The GPU's kernels and PyTorch on a GPU: streams, graphs, compilation, devices. Values are the contract suite's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import sharpmask_kernels as kernels
from sharpmask_kernels import encode_windows, gather_windows
from sharpmask_kernels.backends.cuda import device as cuda
from sharpmask_kernels.backends.triton import device as triton

from ..contract.inputs import SCATTERED, Random, TopDownPass, arguments, windows_at

pytestmark = pytest.mark.gpu

Run = Callable[[], list[Tensor]]


def gathering(backend: str, device: str) -> tuple[Run, Tensor]:
    maps = Random(torch.float32, device=device)(2, 3, 5, 7).requires_grad_()
    windows = windows_at(*SCATTERED, device=device)
    windows = windows._replace(scale=torch.zeros_like(windows.scale))

    def run() -> list[Tensor]:
        gathered = gather_windows(maps, windows, 3, backend=backend)
        return [gathered.detach(), *torch.autograd.grad(gathered, maps, gathered.detach())]

    return run, maps.detach()


def refining(device: str) -> tuple[Run, Tensor]:
    """``refine_windows`` on backend cuda."""
    top_down = TopDownPass(torch.float32, device=device)
    return lambda: [top_down(backend="cuda", threshold=threshold) for threshold in (None, 0.3)], top_down.encoding


def differentiating(op: str, device: str) -> tuple[Run, Tensor]:
    """A refinement op on backend triton, and its gradients."""
    leaves = [x.requires_grad_() for x in arguments(op, Random(torch.float32, device=device), (2, 5, 7), (7, 5, 3))]

    def run() -> list[Tensor]:
        out = getattr(kernels, op)(*leaves, backend="triton")
        return [out.detach(), *torch.autograd.grad(out, leaves, out.detach())]

    return run, leaves[0].detach()


def on_device(backend: str, device: str = "cuda") -> tuple[Run, list[Tensor]]:
    """What runs all of a backend that does not end on the host, and inputs that it reads."""
    parts = [gathering(backend, device)]
    parts += (
        [refining(device)] if backend == "cuda" else [differentiating(op, device) for op in ("refine", "add_upsample")]
    )
    return lambda: [x for run, _ in parts for x in run()], [x for _, x in parts]


each_backend = pytest.mark.parametrize("backend", ["cuda", "triton"])


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def test_it_is_ready() -> None:
    """Not skipped: on a machine with an NVIDIA GPU that these tests run on, the kernels are to be compiled."""
    assert torch.version.hip or cuda.unavailable() is None
    assert triton.unavailable() is None


@each_backend
def test_nothing_waits_for_the_device(backend: str) -> None:
    run, _ = on_device(backend)
    run()  # Kernels are compiled and loaded at their first use.
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@each_backend
def test_a_graph_holds_them(backend: str) -> None:
    """It computes with new inputs."""
    run, inputs = on_device(backend)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):  # as PyTorch asks for before a capture
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for x in inputs:
        x.mul_(-2)
    graph.replay()
    assert_equal(captured, run())


@each_backend
def test_the_current_stream_is_used(backend: str) -> None:
    run, inputs = on_device(backend)
    expected, given = run(), [x.clone() for x in inputs]
    for x in inputs:
        x.zero_()
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10**8)  # what ran on another stream would not wait for this
        for x, y in zip(inputs, given, strict=True):
            x.copy_(y)
        found = run()
    stream.synchronize()
    assert_equal(found, expected)


def test_encoding_waits_for_the_current_stream() -> None:
    logits, windows = Random(torch.float32, device="cuda")(13, 16, 16), windows_at(*SCATTERED, device="cuda")

    def encoded(logits: Tensor) -> list[dict[str, Any]]:
        return encode_windows(logits, windows, (19, 33), [0.5, 1.3], backend="cuda")

    expected, late = encoded(logits), torch.zeros_like(logits)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(10**8)
        late.copy_(logits)
        assert encoded(late) == expected


def test_more_windows_than_blocks() -> None:
    """Blocks stay and take several windows; whichever takes one, its values are the same."""
    few = TopDownPass(torch.float32, device="cuda")
    many = TopDownPass(torch.float32, device="cuda")
    rows = torch.arange(5000, device="cuda") % len(few.encoding)
    many.encoding, many.windows = few.encoding[rows], few.windows.select(rows)
    assert torch.equal(many(backend="cuda"), few(backend="cuda")[rows])


@each_backend
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="gpu: needs two CUDA devices")
def test_the_tensors_device_is_used(backend: str) -> None:
    found = on_device(backend, "cuda:1")[0]()
    assert all(x.device == torch.device("cuda", 1) for x in found)
    assert_equal([x.cpu() for x in found], [x.cpu() for x in on_device(backend, "cuda:0")[0]()])


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_functions_hold_them(mode: str) -> None:
    """Also in the graphs that torch.compile makes of them."""
    given = arguments("refine", Random(torch.float32, device="cuda"), (2, 6, 8), (7, 5, 3))

    def module(*inputs: Tensor) -> Tensor:
        return kernels.refine(*inputs, backend="triton").relu() * 2  # type: ignore[call-arg, misc]

    compiled = torch.compile(module, mode=mode, fullgraph=True)
    for _ in range(3):  # graphs are made at the second call
        found = compiled(*given).clone()
    torch.testing.assert_close(found, module(*given))

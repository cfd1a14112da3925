"""The CUDA kernels and PyTorch on a GPU: streams, graphs, devices. Values are the contract suite's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sharpmask_kernels import encode_windows, gather_windows
from sharpmask_kernels.backends.cuda import device as cuda

from ..contract.inputs import SCATTERED, Random, TopDownPass, windows_at

pytestmark = pytest.mark.gpu

Run = Callable[[], list[Tensor]]


def on_device(device: str = "cuda") -> tuple[Run, list[Tensor]]:
    """What runs all that does not end on the host, and the inputs it reads."""
    top_down = TopDownPass(torch.float32, device=device)
    maps = Random(torch.float32, device=device)(2, 3, 5, 7).requires_grad_()
    windows = windows_at(*SCATTERED, device=device)
    windows = windows._replace(scale=torch.zeros_like(windows.scale))

    def run() -> list[Tensor]:
        logits, bits = (top_down(backend="cuda", threshold=threshold) for threshold in (None, 0.3))
        gathered = gather_windows(maps, windows, 3, backend="cuda")
        (gradient,) = torch.autograd.grad(gathered, maps, gathered.detach())
        return [logits, bits, gathered.detach(), gradient]

    return run, [top_down.encoding, maps.detach()]


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def test_it_is_ready() -> None:
    """Not skipped: on a machine with an NVIDIA GPU that these tests run on, the kernels are to be compiled."""
    assert torch.version.hip or cuda.unavailable() is None


def test_nothing_waits_for_the_device() -> None:
    run, _ = on_device()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_graph_holds_them() -> None:
    """It computes with new inputs."""
    run, inputs = on_device()
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


def test_the_current_stream_is_used() -> None:
    run, inputs = on_device()
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


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="gpu: needs two CUDA devices")
def test_the_tensors_device_is_used() -> None:
    found = on_device("cuda:1")[0]()
    assert all(x.device == torch.device("cuda", 1) for x in found)
    assert_equal([x.cpu() for x in found], [x.cpu() for x in on_device("cuda:0")[0]()])

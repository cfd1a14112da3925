"""The CUDA kernels and PyTorch on a GPU: streams, graphs, devices. Values are the contract suite's."""

from __future__ import annotations

import pytest
import torch

from sharpmask_kernels import gather_windows
from sharpmask_kernels.backends import cuda

from ..contract.inputs import SCATTERED, Cascade, Random, windows_at

pytestmark = pytest.mark.gpu


def test_it_is_ready() -> None:
    """Not skipped: on a machine with an NVIDIA GPU that these tests run on, the kernels are to be compiled."""
    assert torch.version.hip or cuda.unavailable() is None


def test_a_graph_holds_them() -> None:
    """Nothing waits for the device, so that a graph can be captured; it computes with new inputs."""
    cascade = Cascade(torch.float32, device="cuda")
    maps, windows = Random(torch.float32, device="cuda")(2, 3, 5, 7), windows_at(*SCATTERED, device="cuda")
    windows = windows._replace(scale=torch.zeros_like(windows.scale))

    def run() -> list[torch.Tensor]:
        return [cascade(backend="cuda"), gather_windows(maps, windows, 3, backend="cuda")]

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    maps.mul_(2)
    cascade.encoding.mul_(-1)
    graph.replay()
    assert all(torch.equal(x, y) for x, y in zip(captured, run(), strict=True))


def test_the_current_stream_is_used() -> None:
    maps, windows = torch.zeros(1, 1, 4, 4, device="cuda"), windows_at((0, 0, 0, 0), device="cuda")
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10**8)  # what ran on another stream would not wait for this
        maps.fill_(1)
        out = gather_windows(maps, windows, 4, backend="cuda")
    stream.synchronize()
    assert (out == 1).all()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="gpu: needs two CUDA devices")
def test_the_tensors_device_is_used() -> None:
    cascade = Cascade(torch.float32, device="cuda:1")
    out = cascade(backend="cuda")
    assert out.device == torch.device("cuda", 1)
    torch.testing.assert_close(out, cascade(backend="reference"), rtol=0, atol=1e-4 * float(out.abs().max()))

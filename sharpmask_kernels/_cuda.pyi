"""The CUDA kernels: see csrc/python/cuda.cpp. ``stream`` is that of ``torch.cuda.Stream.cuda_stream``."""

from collections.abc import Sequence
from typing import TypedDict

from .backends.native import TensorView, WindowsView

class TopDownPass:
    """The shapes and modes of a top-down pass over encodings (N, ``channels``, ``size``, ``size``)."""

    def __init__(
        self,
        *,
        size: int,
        channels: int,
        convs: Sequence[int],
        out_channels: Sequence[int],
        nearest: bool,
        zeros: bool,
    ) -> None: ...

class Footprint(TypedDict):
    shared_bytes: int
    rounds: int
    banded_layers: int
    band_rows: int
    instructions: int

class BuildInfo(TypedDict):
    flags: str
    emulated: bool

encode_parts: int

def gather_windows(
    *, maps: Sequence[TensorView], windows: WindowsView, step: int, out: TensorView, stream: int
) -> None: ...
def gather_windows_backward(
    *,
    grad: TensorView,
    windows: WindowsView,
    step: int,
    gradients: Sequence[TensorView | None],
    stream: int,
) -> None: ...
def refine_windows(
    top_down_pass: TopDownPass,
    *,
    encoding: TensorView,
    horizontals: Sequence[TensorView],
    windows: WindowsView,
    weights: Sequence[TensorView],
    biases: Sequence[TensorView | None],
    limit: float | None,
    out: TensorView,
    workspace: int,
    stream: int,
) -> None: ...
def refine_windows_workspace(top_down_pass: TopDownPass) -> int: ...
def refine_windows_footprint(
    top_down_pass: TopDownPass, *, shared_per_block: int, shared_per_multiprocessor: int
) -> Footprint: ...
def encode_windows(
    *,
    logits: TensorView,
    windows: WindowsView,
    image_size: tuple[int, int],
    ratios: TensorView,
    limit: float,
    starts: int,
    edges: int,
    stream: int,
) -> None: ...
def build_info() -> BuildInfo: ...

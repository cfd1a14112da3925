"""The C++ kernels: see csrc/python/cpu.cpp.

``zeros``: the padding is "zeros", else "replicate". ``nearest``: the upsampling is "nearest", else "bilinear". A weight
is (outputs, inputs, 3, 3); it and its bias may have any strides. ``out`` is written. ``threads``: how many at most.
"""

from collections.abc import Sequence
from typing import TypedDict

from .backends.native import TensorView, WindowsView

class BuildInfo(TypedDict):
    compiler: str
    flags: str
    openmp: bool
    isas: str

def convolve_upsample(
    *,
    inputs: Sequence[TensorView],
    addend: TensorView | None,
    weight: TensorView,
    bias: TensorView | None,
    zeros: bool,
    nearest: bool,
    out: TensorView,
    active: TensorView | None,
    threads: int,
) -> None: ...
def relu_upsample(
    *, sum: TensorView, nearest: bool, out: TensorView, active: TensorView | None, threads: int
) -> None: ...
def upsample_gradient(
    *, grad: TensorView, active: TensorView | None, nearest: bool, out: TensorView, threads: int
) -> None: ...
def input_gradient(
    *,
    grad: TensorView,
    weight: TensorView,
    zeros: bool,
    relu: TensorView | None,
    out: TensorView,
    threads: int,
) -> None: ...
def weight_gradient(
    *,
    grad: TensorView,
    inputs: Sequence[TensorView],
    zeros: bool,
    weight: TensorView | None,
    bias: TensorView | None,
    threads: int,
) -> None: ...
def feature_forward(
    *,
    feature: TensorView,
    weight: TensorView,
    bias: TensorView | None,
    zeros: bool,
    out: TensorView,
    threads: int,
) -> None: ...
def feature_gradient(*, grad: TensorView, weight: TensorView, zeros: bool, out: TensorView, threads: int) -> None: ...
def horizontal(
    *,
    feature: TensorView,
    weights: Sequence[TensorView],
    biases: Sequence[TensorView | None],
    zeros: bool,
    needed: TensorView | None,
    tile: int,
    relu: bool,
    out: TensorView,
    threads: int,
) -> None: ...
def wide_forward(
    *,
    input: TensorView,
    weight: TensorView,
    bias: TensorView | None,
    zeros: bool,
    relu: bool,
    top: int,
    left: int,
    out: TensorView,
    threads: int,
) -> bool: ...
def wide_gradient(
    *,
    grad: TensorView,
    input: TensorView,
    zeros: bool,
    top: int,
    left: int,
    weight: TensorView | None,
    bias: TensorView | None,
    threads: int,
) -> None: ...
def wide_input_gradient(
    *, grad: TensorView, weight: TensorView, zeros: bool, out: TensorView, threads: int
) -> bool: ...
def upsample_merge(
    *,
    mask: TensorView,
    skip: TensorView | None,
    weight: TensorView,
    bias: TensorView | None,
    mask_first: bool,
    upsample: str,
    zeros: bool,
    activation: str,
    out: TensorView,
    threads: int,
) -> bool: ...
def upsample_merge_gradient(
    *,
    grad: TensorView,
    mask: TensorView,
    skip: TensorView | None,
    mask_first: bool,
    upsample: str,
    zeros: bool,
    weight: TensorView | None,
    bias: TensorView | None,
    threads: int,
) -> None: ...
def upsampled_gradient(
    *, grad: TensorView, weight: TensorView, upsample: str, zeros: bool, out: TensorView, threads: int
) -> None: ...
def inverted_residual(
    *,
    x: TensorView,
    expand_weight: TensorView | None,
    expand_bias: TensorView | None,
    depthwise_weight: TensorView,
    depthwise_bias: TensorView | None,
    project_weight: TensorView,
    project_bias: TensorView | None,
    stride: int,
    residual: bool,
    out: TensorView,
    threads: int,
) -> None: ...
def upsample_add(
    *, mask: TensorView, lateral: TensorView, upsample: str, activation: str, out: TensorView, threads: int
) -> None: ...
def join_phases(
    *, phases: TensorView, lateral: TensorView | None, activation: str, out: TensorView, threads: int
) -> None: ...
def gather_windows(
    *, maps: Sequence[TensorView], windows: WindowsView, step: int, out: TensorView, threads: int
) -> None: ...
def gather_windows_backward(
    *,
    grad: TensorView,
    windows: WindowsView,
    step: int,
    gradients: Sequence[TensorView | None],
    threads: int,
) -> None: ...
def refine_windows(
    *,
    encoding: TensorView,
    horizontals: Sequence[TensorView],
    windows: WindowsView,
    weights: Sequence[TensorView],
    biases: Sequence[TensorView | None],
    convs: Sequence[int],
    nearest: bool,
    zeros: bool,
    limit: float | None,
    out: TensorView,
    threads: int,
) -> None: ...
def encode_windows(
    *,
    logits: TensorView,
    windows: WindowsView,
    image_size: tuple[int, int],
    vertical: Sequence[float],
    horizontal: Sequence[float],
    limit: float,
    threads: int,
) -> tuple[bytes, list[int]]: ...
def isa() -> str: ...
def build_info() -> BuildInfo: ...

"""refine_windows on NVIDIA GPUs."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...windows import logit
from .. import native
from .device import _cuda, on_device


@on_device
def refine_windows(
    encoding: Tensor,
    horizontals: Sequence[Tensor],
    image: Tensor,
    scale: Tensor,
    row: Tensor,
    col: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    convs: Sequence[int],
    upsample: str,
    padding_mode: str,
    threshold: float | None,
    out: Tensor,
    stream: int,
) -> None:
    outs = tuple(weight.shape[0] for weight in weights)
    top_down_pass, workspace_bytes = _top_down_pass(*encoding.shape[1:3], tuple(convs), outs, upsample, padding_mode)
    windows = [x.contiguous() for x in (image, scale, row, col)]
    fits = out.is_contiguous() and out.data_ptr() % 8 == 0
    dense = out if fits else torch.empty_like(out, memory_format=torch.contiguous_format)
    # Freed when this returns. On a GPU, PyTorch then gives the memory only to what comes later in the stream.
    workspace = encoding.new_empty(workspace_bytes, dtype=torch.uint8)
    _cuda.refine_windows(
        top_down_pass,
        encoding=native.view(encoding),
        horizontals=[native.view(m) for m in horizontals],
        windows=native.windows_view(*windows),
        weights=[native.view(weight) for weight in weights],
        biases=[native.optional_view(bias) for bias in biases],
        limit=None if threshold is None else _float_below(logit(threshold)),
        out=native.view(dense),
        workspace=workspace.data_ptr(),
        stream=stream,
    )
    if dense is not out:
        out.copy_(dense)


@functools.lru_cache
def _top_down_pass(
    channels: int, size: int, convs: tuple[int, ...], outs: tuple[int, ...], upsample: str, padding_mode: str
) -> tuple[_cuda.TopDownPass, int]:
    """The shapes and modes, and the bytes of device memory that they need."""
    top_down_pass = _cuda.TopDownPass(
        size=size,
        channels=channels,
        convs=convs,
        out_channels=outs,
        nearest=upsample == "nearest",
        zeros=padding_mode == "zeros",
    )
    return top_down_pass, _cuda.refine_windows_workspace(top_down_pass)


def _float_below(x: float) -> float:
    """The largest fp32 number up to ``x``: no fp32 number lies between the two."""
    near = np.float32(x)
    return float(near if float(near) <= x else np.nextafter(near, np.float32(-math.inf)))

"""refine_windows on NVIDIA GPUs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...windows import logit
from .. import native
from .device import module, on_device


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
    cascade = module().Cascade(
        encoding.shape[-1],
        encoding.shape[1],
        convs,
        [weight.shape[0] for weight in weights],
        upsample == "nearest",
        padding_mode == "zeros",
    )
    windows = [x.contiguous() for x in (image, scale, row, col)]
    fits = out.is_contiguous() and out.data_ptr() % 8 == 0
    dense = out if fits else torch.empty_like(out, memory_format=torch.contiguous_format)
    # On a GPU it may be used again as soon as this returns: only by what comes later in the stream.
    workspace = encoding.new_empty(module().refine_windows_workspace(cascade), dtype=torch.uint8)
    module().refine_windows(
        cascade,
        encoding.data_ptr(),
        encoding.stride(),
        native.DTYPES[encoding.dtype],
        [native.map_of(m) for m in horizontals],
        native.windows_of(*windows),
        horizontals[0].shape[0],
        [_convolution(weight, bias) for weight, bias in zip(weights, biases, strict=True)],
        threshold is not None,
        0.0 if threshold is None else _float_below(logit(threshold)),
        dense.data_ptr(),
        workspace.data_ptr(),
        stream,
    )
    if dense is not out:
        out.copy_(dense)


def _convolution(weight: Tensor, bias: Tensor | None) -> tuple[int, ...]:
    return (
        weight.shape[0],
        weight.data_ptr(),
        *weight.stride(),
        0 if bias is None else bias.data_ptr(),
        0 if bias is None else bias.stride(0),
    )


def _float_below(x: float) -> float:
    """The largest fp32 number up to ``x``: one is greater than it if and only if it is greater than ``x``."""
    near = np.float32(x)
    return float(near if float(near) <= x else np.nextafter(near, np.float32(-math.inf)))

"""refine_windows on CPUs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...windows import logit
from .. import native
from .device import module
from .refinement import _dense, _layer


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
) -> None:
    windows = [x.contiguous() for x in (image, scale, row, col)]
    dtype = encoding.dtype
    layers = [(_dense(w, dtype), None if b is None else _dense(b, dtype)) for w, b in zip(weights, biases, strict=True)]
    module().refine_windows(
        native.DTYPES[dtype],
        native.map_of(encoding),
        [native.map_of(m) for m in horizontals],
        horizontals[0].shape[0] if horizontals else 0,
        native.windows_of(*windows),
        [_layer(w, b) for w, b in layers],
        list(convs),
        upsample == "nearest",
        padding_mode == "zeros",
        None if threshold is None else logit(threshold),
        out.data_ptr(),
        out.stride(),
        torch.get_num_threads(),
    )

"""refine_windows on CPUs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import _cpu
from ...windows import logit
from ..native import optional_view, view, windows_view


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
    _cpu.refine_windows(
        encoding=view(encoding),
        horizontals=[view(m) for m in horizontals],
        windows=windows_view(*windows),
        weights=[view(weight) for weight in weights],
        biases=[optional_view(bias) for bias in biases],
        convs=convs,
        nearest=upsample == "nearest",
        zeros=padding_mode == "zeros",
        limit=None if threshold is None else logit(threshold),
        out=view(out),
        threads=torch.get_num_threads(),
    )

"""horizontal on CPUs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import _cpu, layout
from ..native import optional_view, view


def horizontal(
    feature: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    padding_mode: str,
    needed: Tensor | None,
    tile: int,
) -> Tensor:
    batch, _, height, width = feature.shape
    out = layout.empty((batch, weights[-1].shape[0], height, width), feature, layout.memory_format(feature))
    if needed is not None:
        out.zero_()
        needed = needed.view(torch.uint8)
    _cpu.horizontal(
        feature=view(feature),
        weights=[view(weight) for weight in weights],
        biases=[optional_view(bias) for bias in biases],
        zeros=padding_mode == "zeros",
        needed=optional_view(needed),
        tile=tile,
        out=view(out),
        threads=torch.get_num_threads(),
    )
    return out

"""inverted_residual on CPUs."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _cpu, layout
from ..native import optional_view, view


def inverted_residual(
    x: Tensor,
    expand_weight: Tensor | None,
    expand_bias: Tensor | None,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    project_weight: Tensor,
    project_bias: Tensor | None,
    stride: int,
    residual: bool,
) -> Tensor:
    batch, _, height, width = x.shape
    shape = (batch, project_weight.shape[0], -(-height // stride), -(-width // stride))
    out = layout.empty(shape, x, layout.memory_format(x))
    _cpu.inverted_residual(
        x=view(x),
        expand_weight=optional_view(expand_weight),
        expand_bias=optional_view(expand_bias),
        depthwise_weight=view(depthwise_weight),
        depthwise_bias=optional_view(depthwise_bias),
        project_weight=view(project_weight),
        project_bias=optional_view(project_bias),
        stride=stride,
        residual=residual,
        out=view(out),
        threads=torch.get_num_threads(),
    )
    return out

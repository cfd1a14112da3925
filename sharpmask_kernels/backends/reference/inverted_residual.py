"""inverted_residual in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ... import layout


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
    hidden = x if expand_weight is None else F.relu6(F.conv2d(x, expand_weight, expand_bias))
    kernel = depthwise_weight.shape[-1]
    before = (kernel - stride) // 2
    padded = F.pad(hidden, (before, kernel - 1 - before) * 2)
    hidden = F.relu6(F.conv2d(padded, depthwise_weight, depthwise_bias, stride, groups=hidden.shape[1]))
    out = F.conv2d(hidden, project_weight, project_bias)
    return (x + out if residual else out).contiguous(memory_format=layout.memory_format(x))

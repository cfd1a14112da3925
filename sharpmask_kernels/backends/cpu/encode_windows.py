"""encode_windows on CPUs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...windows import logit, scaled_size
from .. import native
from .device import module


def encode_windows(
    logits: Tensor,
    scale: Tensor,
    row: Tensor,
    col: Tensor,
    image_size: Sequence[int],
    scales: Sequence[float],
    threshold: float,
) -> tuple[Tensor, Tensor]:
    height, width = image_size
    ratios = [(h / height, w / width) for h, w in (scaled_size(height, width, s) for s in scales)]
    windows = [x.contiguous() for x in (scale, row, col)]
    counts, ends = module().encode_windows(
        native.DTYPES[logits.dtype],
        native.map_of(logits[:, None]),
        (scale.shape[0], 0, *(x.data_ptr() for x in windows)),
        (height, width),
        [vertical for vertical, _ in ratios],
        [horizontal for _, horizontal in ratios],
        logit(threshold),
        torch.get_num_threads(),
    )
    return torch.frombuffer(bytearray(counts or b"\0"), dtype=torch.uint8)[: len(counts)], torch.tensor([0, *ends])

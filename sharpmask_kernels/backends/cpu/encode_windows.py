"""encode_windows on CPUs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import _cpu
from ...windows import logit, scaled_size
from ..native import view, windows_view


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
    scale, row, col = fields = [x.contiguous() for x in (scale, row, col)]
    counts, ends = _cpu.encode_windows(
        logits=view(logits),
        # All windows are of one image, so that nothing reads which: any address serves.
        windows=windows_view(scale, scale, row, col),
        image_size=(height, width),
        vertical=[vertical for vertical, _ in ratios],
        horizontal=[horizontal for _, horizontal in ratios],
        limit=logit(threshold),
        threads=torch.get_num_threads(),
    )
    del fields  # a compiler that meets this code must not let go of them before
    return torch.frombuffer(bytearray(counts or b"\0"), dtype=torch.uint8)[: len(counts)], torch.tensor([0, *ends])

"""encode_windows on NVIDIA GPUs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ... import rle
from ...windows import logit, scaled_size
from .. import native
from .device import _cuda, on_device


@on_device
def encode_windows(
    logits: Tensor,
    scale: Tensor,
    row: Tensor,
    col: Tensor,
    image_size: Sequence[int],
    scales: Sequence[float],
    threshold: float,
    stream: int,
) -> tuple[Tensor, Tensor]:
    count, (height, width) = logits.shape[0], image_size
    sizes = [scaled_size(height, width, s) for s in scales]
    ratios = torch.tensor([(h / height, w / width) for h, w in sizes], dtype=torch.float64, device=logits.device)
    windows = [x.contiguous() for x in (scale, row, col)]
    found = logits.new_empty((count, _cuda.encode_parts), dtype=torch.int64)

    def launch(starts: Tensor, edges: int) -> None:
        _cuda.encode_windows(
            logits=native.view(logits),
            windows=native.WindowsView(count, 0, *(x.data_ptr() for x in windows)),
            image_size=(height, width),
            ratios=native.view(ratios),
            limit=logit(threshold),
            starts=starts.data_ptr(),
            edges=edges,
            stream=stream,
        )

    launch(found, 0)
    ends = found.flatten().cumsum(0).view_as(found)
    per_window = np.append(0, ends[:, -1].cpu().numpy())  # waits for the device
    edges = logits.new_empty(max(1, int(per_window[-1])), dtype=torch.int64)
    launch(ends - found, edges.data_ptr())
    positions = edges.cpu().numpy()
    counts = [
        rle.counts_to_bytes(np.diff(positions[first:last], prepend=0, append=height * width))
        for first, last in itertools.pairwise(per_window)
    ]
    offsets = torch.tensor(np.append(0, np.cumsum([len(c) for c in counts], dtype=np.int64)))
    return torch.frombuffer(bytearray(b"".join(counts) or b"\0"), dtype=torch.uint8)[: offsets[-1]], offsets

"""encode_windows in numpy."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ... import rle
from ...windows import logit, sample_positions

Array = npt.NDArray[np.float64]


def encode_windows(
    logits: Tensor,
    scale: Tensor,
    row: Tensor,
    col: Tensor,
    image_size: Sequence[int],
    scales: Sequence[float],
    threshold: float,
) -> tuple[Tensor, Tensor]:
    # numpy knows no bf16.
    values = (logits.float() if logits.dtype == torch.bfloat16 else logits).cpu().numpy()
    cells = zip(*(t.tolist() for t in (scale, row, col)), strict=True)
    counts = list(encoded(values, cells, (image_size[0], image_size[1]), scales, threshold))
    offsets = torch.tensor(list(itertools.accumulate(map(len, counts), initial=0)))
    return torch.frombuffer(bytearray(b"".join(counts) or b"\0"), dtype=torch.uint8)[: offsets[-1]], offsets


def encoded(
    values: npt.NDArray[Any],
    cells: Iterator[tuple[int, int, int]],
    image_size: tuple[int, int],
    scales: Sequence[float],
    threshold: float,
) -> Iterator[bytes]:
    """The COCO counts of each map of logits, pasted at its (scale, row, col)."""
    (height, width), side = image_size, values.shape[-1]
    for value, (scale, row, col) in zip(values, cells, strict=True):
        top, v = sample_positions(height, scales[scale], row, side)
        left, u = sample_positions(width, scales[scale], col, side)
        yield rle.encode(bilinear(value, v, u) > logit(threshold), (top, left), image_size)


def bilinear(value: npt.NDArray[Any], v: Array, u: Array) -> Array:
    """Samples of the map ``value`` (S, S) at all pairs of rows ``v`` and columns ``u`` in [0, S - 1], in fp64."""
    rows = _lerp(value.astype(np.float64), v)
    return _lerp(rows.T, u).T


def _lerp(value: Array, position: Array) -> Array:
    low = position.astype(np.int64)
    high = np.minimum(low + 1, len(value) - 1)
    fraction = (position - low)[:, None]
    return value[low] * (1 - fraction) + value[high] * fraction

"""refine_windows in plain PyTorch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...windows import logit
from .gather_windows import gather_windows
from .refinement import add_upsample, conv3x3, pack_bits

WINDOWS_PER_CHUNK = 64
"""Windows refined at a time: the activations of one chunk stay in cache and memory stays bounded."""


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
    options = (weights, biases, convs, upsample, padding_mode, threshold)
    for start in range(0, len(encoding), WINDOWS_PER_CHUNK):
        chunk = slice(start, start + WINDOWS_PER_CHUNK)
        out[chunk] = top_down_pass(
            encoding[chunk], horizontals, image[chunk], scale[chunk], row[chunk], col[chunk], *options
        )


def top_down_pass(
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
) -> Tensor:
    """:func:`refine_windows` of windows few enough to hold their activations."""
    x, size, stages = encoding, encoding.shape[-1], len(convs)
    parameters = iter(zip(weights, biases, strict=True))
    for stage, count in enumerate(convs):
        step = 1 << stage
        horizontal = gather_windows(horizontals[stage::stages], image, scale, row, col, size * step, step)
        for weight, bias in itertools.islice(parameters, count - 1):
            x = F.relu(conv3x3(x, weight, bias, padding_mode))
        x, _ = add_upsample(horizontal, x, *next(parameters), upsample, padding_mode, save=False)
    logits = conv3x3(x, *next(parameters), padding_mode)[:, 0]
    # To the logits' dtype before the comparison, which would else round its threshold to 16 bits.
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits if threshold is None else pack_bits(logits > logit(threshold))

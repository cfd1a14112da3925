"""``refine_windows``: the whole top-down pass on the best windows of a photo."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sharpmask_kernels as kernels
from sharpmask_kernels import Windows

from .base import Function, PaddingMode, Plain, Randn, Transform, Workload, up2
from .gather_windows import cut
from .shapes import CELLS, LEVELS, MASK_CHANNELS, WINDOW, best_windows, pyramid


class TopDownPass(nn.Module):
    """All stages and the head on some windows. Inputs: the encoding, then each stage's horizontal maps, cut out."""

    def __init__(self, mask_channels: Sequence[int], padding_mode: PaddingMode, limit: float | None) -> None:
        super().__init__()
        self.limit = limit
        # As in SharpMask, the horizontal maps already contain the bias.
        self.stages = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, padding_mode=padding_mode, bias=False)
            for a, b in itertools.pairwise(mask_channels)
        )
        self.head = nn.Conv2d(mask_channels[-1], 1, 3, padding=1, padding_mode=padding_mode)

    def forward(self, encoding: Tensor, *horizontals: Tensor) -> Tensor:
        x = encoding
        for vertical, horizontal in zip(self.stages, horizontals, strict=True):
            x = up2(F.relu(horizontal + vertical(x)))
        logits = self.head(x)[:, 0]
        return logits if self.limit is None else logits > self.limit


class RefineWindows(Plain):
    """Refines some windows at a time, or all. Inputs: the encoding, then the horizontal maps by scale.

    With a ``threshold``, ``forward`` gives booleans and ``op`` packed bits.
    """

    chunk = 50
    """Windows that are refined at a time. PyTorch, ONNX Runtime and OpenVINO take longer with 10 or 25, and about as
    long with 100. Some are fastest with all at once: see :meth:`whole`."""

    def __init__(
        self,
        windows: Windows,
        size: int,
        mask_channels: Sequence[int],
        padding_mode: PaddingMode = "replicate",
        threshold: float | None = None,
    ) -> None:
        super().__init__()
        self.windows, self.size, self.padding_mode, self.threshold = windows, size, padding_mode, threshold
        limit = None if threshold is None else math.log(threshold / (1 - threshold))
        self.top_down = TopDownPass(mask_channels, padding_mode, limit)
        self.out: Tensor | None = None
        self.in_parts = len(windows.score) > self.chunk

    def whole(self) -> RefineWindows:
        self.chunk, self.in_parts = len(self.windows.score), False
        return self

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.run(self.top_down, *inputs)

    def run(self, top_down: Function, *inputs: Tensor) -> Tensor:
        count, side = len(inputs[0]), self.size << len(self.top_down.stages)
        if not self.in_parts:
            return cast(Tensor, top_down(*self.cut(inputs, slice(0, count))))
        dtype = inputs[0].dtype if self.threshold is None else torch.bool
        out = self.output(inputs[0], (count, side, side), dtype)
        for first in range(0, count, self.chunk):
            chunk = slice(first, first + self.chunk)
            out[chunk] = top_down(*self.cut(inputs, chunk))
        return out

    def cut(self, inputs: Sequence[Tensor], chunk: slice) -> list[Tensor]:
        """The inputs of the top-down pass for some windows."""
        encoding, *horizontals = inputs
        stages, windows = len(self.top_down.stages), self.windows.select(chunk)
        crops = (cut(horizontals[j::stages], windows, self.size << j, 1 << j) for j in range(stages))
        return [encoding[chunk], *crops]

    def output(self, like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The output, which the first call allocates."""
        if self.out is None:
            self.out = like.new_empty(shape, dtype=dtype)
        return self.out

    def through(self, transform: Transform, example: tuple[Tensor, ...]) -> Function:
        return functools.partial(self.run, transform(self.top_down, tuple(self.cut(example, slice(0, self.chunk)))))

    def comparable(self, result: Tensor) -> Tensor:
        if result.dtype != torch.uint8:
            return result
        return torch.from_numpy(np.unpackbits(result.cpu().numpy(), axis=-1, bitorder="little")).bool()

    def op(self, backend: str, *inputs: Tensor) -> Tensor:
        encoding, *maps = inputs
        count, side = len(self.top_down.stages), self.size << len(self.top_down.stages)
        shape, dtype = (len(encoding), side, side), torch.promote_types(encoding.dtype, torch.float32)
        if self.threshold is not None:
            shape, dtype = (len(encoding), side, -(-side // 8)), torch.uint8
        return kernels.refine_windows(
            encoding,
            [maps[i : i + count] for i in range(0, len(maps), count)],
            self.windows,
            [[(cast(nn.Conv2d, stage).weight, None)] for stage in self.top_down.stages],
            (self.top_down.head.weight, self.top_down.head.bias),
            padding_mode=self.padding_mode,
            threshold=self.threshold,
            out=self.output(encoding, shape, dtype),
            backend=backend,
        )


def workload(
    count: int, photo: tuple[int, int], padding_mode: PaddingMode = "replicate", threshold: float | None = None
) -> Workload:
    def inputs(randn: Randn) -> tuple[Tensor, ...]:
        stages = [pyramid(randn, photo, stage) for stage in range(len(LEVELS))]
        by_scale = itertools.chain.from_iterable(zip(*stages, strict=True))
        return randn(count, MASK_CHANNELS[0], CELLS, CELLS), *by_scale

    return Workload(
        "refine_windows",
        f"{count}x{WINDOW}x{WINDOW}" + ("" if threshold is None else "-bits"),
        lambda device: RefineWindows(best_windows(count, photo, device), CELLS, MASK_CHANNELS, padding_mode, threshold),
        inputs,
    )

"""What the windows of one image share: its dense maps by scale and the grid of windows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sharpmask_kernels import Windows
from sharpmask_kernels.windows import STRIDE, scaled_size

from ..geometry import CANONICAL
from ..models.inference import InferenceForm
from .pictures import Picture


class ImageMaps(NamedTuple):
    """What the windows of one image share: one entry per scale."""

    picture: Picture
    scales: list[float]
    """Factors from the photo's size to that of the maps."""
    codes: list[Tensor]
    """(1, C, rows, cols): what :meth:`sharpmask.models.inference.InferenceForm.codes` reads."""
    score: list[Tensor]
    """(1, 1, rows, cols); a single -inf as long as the scale has not been looked at."""
    horizontals: list[list[Tensor]]
    """By scale and stage; empty without refinement."""
    form: InferenceForm
    """What computes them, and the windows' codes of them."""

    @classmethod
    def of(cls, picture: Picture, scales: list[float], device: torch.device, form: InferenceForm) -> ImageMaps:
        """Those of a picture that has not been looked at."""
        nothing = [torch.full((1, 1, 1, 1), -torch.inf, device=device)] * len(scales)
        return cls(picture, scales, nothing, [*nothing], [[] for _ in scales], form)

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of the photo."""
        return self.picture.size


Choice: TypeAlias = Callable[[ImageMaps], Windows]
"""Which windows to refine. Of those that it chooses among some scales, and no others, it chooses among more scales."""


class Grid(NamedTuple):
    """All windows of an image, in the order of ``topk_windows``: tensors of length N on one device."""

    score: Tensor
    """Score logit; -inf where the model gave NaN."""
    scale: Tensor
    row: Tensor
    col: Tensor
    x: Tensor
    """The window's centre, in image pixels."""
    y: Tensor
    reach: Tensor
    """Half the side, in image pixels, of an object of the canonical size in the window."""

    def windows(self, indices: Sequence[Tensor]) -> Windows:
        """The windows at ``indices`` (positions), one after another."""
        index = torch.cat([torch.zeros_like(self.scale[:0]), *indices])
        return Windows(self.score[index], torch.zeros_like(index), self.scale[index], self.row[index], self.col[index])


class Stopwatch:
    """Seconds by stage. On a GPU they are taken there, so no stage waits for the one before."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stages: list[tuple[str, float | tuple[torch.cuda.Event, torch.cuda.Event]]] = []

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        if self.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            with torch.cuda.device(self.device):
                start.record()
                yield
                end.record()
            self._stages.append((stage, (start, end)))
        else:
            begun = time.perf_counter()
            yield
            self._stages.append((stage, time.perf_counter() - begun))

    @property
    def seconds(self) -> dict[str, float]:
        """Of all stages so far, in order; waits for a GPU."""
        total: dict[str, float] = {}
        for stage, taken in self._stages:
            if not isinstance(taken, float):
                taken[1].synchronize()
                taken = taken[0].elapsed_time(taken[1]) / 1e3
            total[stage] = total.get(stage, 0.0) + taken
        return total


def as_tensor(pixels: npt.NDArray[np.uint8], device: torch.device) -> Tensor:
    """Pixels (h, w, 3) in 0..255 to (1, 3, h, w) in [0, 1]."""
    return torch.tensor(pixels, device=device).permute(2, 0, 1)[None].float().div_(255)


def grid_of(maps: ImageMaps, window: int) -> Grid:
    """The grid of windows of ``window`` pixels, on the device of the maps."""
    parts = []
    height, width = maps.size
    for i, score in enumerate(maps.score):
        rows, cols = score.shape[2:]
        row, col = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
        row, col = row.flatten(), col.flatten()
        tall, wide = scaled_size(height, width, maps.scales[i])
        x, y = col * (STRIDE * width / wide), row * (STRIDE * height / tall)
        reach = torch.full_like(x, CANONICAL * window / 2 * max(height, width) / max(tall, wide))
        parts.append((torch.full_like(row, i), row, col, x, y, reach))
    score = torch.cat([s.flatten() for s in maps.score]).float()
    fields = (torch.cat(p).to(score.device) for p in zip(*parts, strict=True))
    return Grid(torch.where(score.isnan(), -torch.inf, score), *fields)


def window_boxes(maps: ImageMaps, windows: Windows, window: int) -> npt.NDArray[np.float64]:
    """What windows of ``window`` pixels cover of the photo: (N, 4), x, y, width, height, which may leave it."""
    height, width = maps.size
    sizes = np.array([scaled_size(height, width, scale) for scale in maps.scales])
    scale, row, col = (field.cpu().numpy() for field in windows[2:])
    tall, wide = height / sizes[scale, 0], width / sizes[scale, 1]
    half = window / 2
    return np.stack([(STRIDE * col - half) * wide, (STRIDE * row - half) * tall, window * wide, window * tall], 1)

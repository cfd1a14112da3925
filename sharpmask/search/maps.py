"""What the windows of one image share: the image's pixels, its dense maps by scale and the grid of windows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from sharpmask_kernels import Windows
from sharpmask_kernels.windows import STRIDE, scaled_size

from ..data.images import load_image, to_rgb
from ..geometry import CANONICAL

ImageLike = str | Path | Image.Image | npt.NDArray[np.uint8]
"""A file, a PIL image, or a uint8 array (h, w, 3) in RGB."""


class ImageMaps(NamedTuple):
    """What the windows of one image share: one entry per scale."""

    image: npt.NDArray[np.uint8]
    """The photo, uint8 (h, w, 3) RGB."""
    scales: list[float]
    """Factors by which the photo was resized."""
    code: list[Tensor]
    """(1, code, rows, cols)"""
    score: list[Tensor]
    """(1, 1, rows, cols)"""
    horizontals: list[list[Tensor]]
    """By scale and stage; empty without refinement."""


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

    def windows(self, index: Tensor) -> Windows:
        """The windows at ``index`` (positions)."""
        return Windows(self.score[index], torch.zeros_like(index), self.scale[index], self.row[index], self.col[index])


class Stopwatch:
    """Seconds by stage; on a GPU each stage waits for its own work."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, dict[str, float]()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


def as_pixels(image: ImageLike) -> npt.NDArray[np.uint8]:
    """A photo as uint8 (h, w, 3) RGB. A PIL image is converted and turned by its EXIF orientation, as a file is.

    Raises ``DataError`` for an unusable file, ``ValueError`` for an unusable array.
    """
    if isinstance(image, str | Path):
        return load_image(image)
    if isinstance(image, Image.Image):
        return np.array(to_rgb(ImageOps.exif_transpose(image), "image"))
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or min(image.shape) < 1:
        raise ValueError(f"image must be uint8 (h, w, 3), got {image.dtype} {image.shape}")
    # An array turned from BGR is a view with a negative stride, which PyTorch does not take.
    return np.ascontiguousarray(image)


def as_tensor(pixels: npt.NDArray[np.uint8], device: torch.device) -> Tensor:
    """Pixels (h, w, 3) in 0..255 to (1, 3, h, w) in [0, 1]."""
    return torch.tensor(pixels, device=device).permute(2, 0, 1)[None].float() / 255


def grid_of(maps: ImageMaps, window: int) -> Grid:
    """The grid of windows of ``window`` pixels, on the device of the maps."""
    parts = []
    height, width = maps.image.shape[:2]
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

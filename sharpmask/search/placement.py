"""Where windows lie on an image: how the image is resized for them, and how their masks come back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sharpmask_kernels import Windows, encode_windows
from sharpmask_kernels.windows import sample_positions, scaled_size

from ..models.config import Geometry
from .released import Released, ReleasedExact


class Placement(Protocol):
    """Placement of windows of ``window`` pixels."""

    def __init__(self, window: int) -> None: ...

    def resize(self, picture: Tensor, scale: float, photo_size: tuple[int, int] | None = None) -> Tensor:
        """picture (1, 3, h', w') at ``scale`` times the size of the photo (h, w), by default the picture's own."""

    def shift(self, windows: Windows, columns: list[int]) -> Windows:
        """The windows to read for the best-scoring ``windows``; ``columns``: of the grid of each scale."""

    def enlarge(self, coarse: Tensor) -> Tensor:
        """Coarse logits (N, s, s) in the size in which ``encode`` takes them."""

    def encode(
        self, logits: Tensor, windows: Windows, image_size: tuple[int, int], scales: list[float], threshold: float
    ) -> list[dict[str, object]]:
        """Mask logits as COCO RLE of the image (h, w); ``threshold`` is a probability."""

    def spread(self, logits: Tensor, windows: Windows, image_size: tuple[int, int], scales: list[float]) -> Tensor:
        """Mask logits at the pixels of the image: (N, h, w), -inf outside of the window."""


class Centres:
    """Placement by pixel centres (:mod:`sharpmask_kernels.windows`)."""

    def __init__(self, window: int) -> None:
        self.window = window

    def resize(self, picture: Tensor, scale: float, photo_size: tuple[int, int] | None = None) -> Tensor:
        """picture (1, 3, h', w') at ``scale`` times the photo's size, bilinear with antialiasing."""
        height, width = photo_size or picture.shape[2:]
        size = scaled_size(height, width, scale)
        return F.interpolate(picture, size, mode="bilinear", align_corners=False, antialias=True)

    def shift(self, windows: Windows, columns: list[int]) -> Windows:
        """``windows`` as they are."""
        return windows

    def enlarge(self, coarse: Tensor) -> Tensor:
        """Coarse logits (N, s, s) at the window's pixels: (N, S, S)."""
        size = (self.window, self.window)
        return F.interpolate(coarse[:, None], size, mode="bilinear", align_corners=False)[:, 0]

    def encode(
        self, logits: Tensor, windows: Windows, image_size: tuple[int, int], scales: list[float], threshold: float
    ) -> list[dict[str, object]]:
        """Mask logits (N, S, S) as COCO RLE of the image (h, w)."""
        return encode_windows(logits, windows, image_size, scales, threshold=threshold)

    def spread(self, logits: Tensor, windows: Windows, image_size: tuple[int, int], scales: list[float]) -> Tensor:
        """Mask logits (N, S, S), sampled bilinearly at the centres of pixels: (N, h, w), -inf outside of the window."""
        logits = logits.float()
        found = logits.new_full((len(logits), *image_size), -torch.inf)
        for out, mask, i, *cells in zip(found, logits, *(v.tolist() for v in windows[2:]), strict=True):
            (y, rows), (x, cols) = (
                self._samples(length, scales[i], cell, mask) for length, cell in zip(image_size, cells, strict=True)
            )
            out[y : y + len(rows), x : x + len(cols)] = rows @ mask @ cols.T
        return found

    def _samples(self, length: int, scale: float, cell: int, mask: Tensor) -> tuple[int, Tensor]:
        """The first pixel of an axis that samples a mask (S, S), and the weights (n, S) of the pixels from there on."""
        first, places = sample_positions(length, scale, cell, self.window)
        at = torch.from_numpy(places)
        # Hat functions: a place between two cells takes of each what is left to the other.
        weights = (1 - (at[:, None] - torch.arange(self.window)).abs()).clamp(min=0)
        return first, weights.to(mask)


PLACEMENTS: Mapping[Geometry, type[Placement]] = {
    "centres": Centres,
    "released": Released,
    "released-exact": ReleasedExact,
}
"""By the ``geometry`` of a :class:`~sharpmask.SearchConfig`."""

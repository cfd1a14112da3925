"""Where windows lie on an image: how the image is resized for them, and how their masks come back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from sharpmask_kernels import Windows, encode_windows
from sharpmask_kernels.windows import scaled_size

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


PLACEMENTS: Mapping[Geometry, type[Placement]] = {
    "centres": Centres,
    "released": Released,
    "released-exact": ReleasedExact,
}
"""By the ``geometry`` of a :class:`~sharpmask.SearchConfig`."""

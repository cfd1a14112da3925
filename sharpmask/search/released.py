"""Where the authors' released code puts windows and masks, for the use of its weights.

It differs from the geometry by pixel centres (:class:`.placement.Centres`) by up to a few pixels. Images are resized
corner to corner and without smoothing; masks are resized to a whole number of pixels and moved by whole pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from sharpmask_kernels import Windows
from sharpmask_kernels.rle import encode
from sharpmask_kernels.windows import STRIDE, logit


class Released:
    """The released code's placement of windows of ``window`` pixels, without its mistake (:class:`ReleasedExact`)."""

    def __init__(self, window: int) -> None:
        self.window = window

    def resize(self, picture: Tensor, scale: float, photo_size: tuple[int, int] | None = None) -> Tensor:
        """picture (1, 3, h', w') at ``scale`` times the photo's size (default: the picture's).

        Sizes are rounded half up; corner pixels' centres stay in the corners.
        """
        size = tuple(max(1, math.floor(side * scale + 0.5)) for side in photo_size or picture.shape[2:])
        return F.interpolate(picture, size, mode="bilinear", align_corners=True)

    def shift(self, windows: Windows, columns: list[int]) -> Windows:
        """``windows`` as they are."""
        return windows

    def enlarge(self, coarse: Tensor) -> Tensor:
        """Coarse logits (N, s, s) as they are: ``encode`` resizes them once, to image pixels."""
        return coarse

    def encode(
        self, logits: Tensor, windows: Windows, image_size: tuple[int, int], scales: list[float], threshold: float
    ) -> list[dict[str, object]]:
        """Mask logits (N, s, s) as COCO RLE of the image (h, w), as :func:`sharpmask_kernels.encode_windows` gives it.

        A mask is resized to floor(window / scale) pixels and moved by whole pixels.
        """
        bound = logit(threshold)
        return [
            {"size": list(image_size), "counts": encode((part > bound).cpu().numpy(), origin, image_size)}
            for part, origin in self._placed(logits, windows, image_size, scales)
        ]

    def spread(self, logits: Tensor, windows: Windows, image_size: tuple[int, int], scales: list[float]) -> Tensor:
        """Mask logits (N, s, s) at the pixels of the image: (N, h, w), -inf outside of the window."""
        found = logits.new_full((len(logits), *image_size), -torch.inf, dtype=torch.float32)
        for out, (part, (y, x)) in zip(found, self._placed(logits, windows, image_size, scales), strict=True):
            out[y : y + part.shape[0], x : x + part.shape[1]] = part
        return found

    def _placed(
        self, logits: Tensor, windows: Windows, image_size: tuple[int, int], scales: list[float]
    ) -> Iterator[tuple[Tensor, tuple[int, int]]]:
        """The part of each mask that lies inside the image, resized, and its first pixel (y, x)."""
        weights: dict[int, Tensor] = {}  # by scale
        for mask, i, row, col in zip(logits.float(), *(v.tolist() for v in windows[2:]), strict=True):
            size = max(1, math.floor(self.window / scales[i]))
            if i not in weights:
                weights[i] = torch.from_numpy(resize_weights(mask.shape[0], size)).to(mask.device)
            targets = [places(cell, scales[i], self.window, size) for cell in (row, col)]
            yield _visible(mask, weights[i], targets, image_size)


class ReleasedExact(Released):
    """The released code's placement with its mistake: a window is read one row above and one column to the right."""

    def shift(self, windows: Windows, columns: list[int]) -> Windows:
        """The windows that the released code takes for ``windows``; ``columns``: of the grid of each scale.

        That code counts cells from 1. To find a cell's row it takes this number for one counted from 0, and to find
        the column for one counted from 1. From the last column it therefore goes to the first column of the same
        row. The first row stays.
        """
        last = windows.col + 1 == torch.tensor(columns, device=windows.col.device)[windows.scale]
        row = torch.where(last, windows.row, (windows.row - 1).clamp(min=0))
        return windows._replace(row=row, col=torch.where(last, 0, windows.col + 1))


def resize_weights(length: int, size: int) -> npt.NDArray[np.float32]:
    """Weights (size, length) by which Torch's ``image.scale`` resizes one axis of ``length`` cells to ``size``.

    Enlarging is linear between the first and the last cell's centre; reducing averages over what a new cell covers.
    Positions are rounded to fp32, as they are there.
    """
    weights = np.zeros((size, length), dtype=np.float32)
    new = np.arange(size)
    if size > length:
        at = new.astype(np.float32) * np.float32((length - 1) / max(size - 1, 1))
        first = np.minimum(at.astype(np.int64), length - 1)
        part = at - first.astype(np.float32)
        # The last new cell is the last old one, however its position was rounded.
        first[-1], part[-1] = length - 1, 0
        weights[new, first] = 1 - part
        weights[new, np.minimum(first + 1, length - 1)] += part
        return weights
    edges = np.arange(size + 1).astype(np.float32) * np.float32(length / size)
    whole = np.minimum(edges.astype(np.int64), length)
    part = edges - whole.astype(np.float32)
    for i in new:
        weights[i, whole[i] : whole[i + 1]] = 1
        weights[i, whole[i]] = 1 - part[i]
        if whole[i + 1] < length:
            weights[i, whole[i + 1]] += part[i + 1]
    return weights / weights.sum(1, keepdims=True)


def places(cell: int, scale: float, window: int, size: int) -> npt.NDArray[np.int64]:
    """Where the ``size`` pixels of a mask at a grid cell lie along one axis of the image, which they may leave."""
    start = cell * (STRIDE / scale) - window / 2 / scale
    return np.floor(start + np.arange(size)).astype(np.int64)


def _visible(
    mask: Tensor, weights: Tensor, targets: list[npt.NDArray[np.int64]], image_size: tuple[int, int]
) -> tuple[Tensor, tuple[int, int]]:
    """The part of a mask that lies inside the image, and its first pixel (y, x).

    mask (s, s): logits. weights (size, s): resize one axis. targets: image rows, image columns of the resized
    mask, (size) each. Empty if the mask misses the image.
    """
    inside = [np.flatnonzero((t >= 0) & (t < side)) for t, side in zip(targets, image_size, strict=True)]
    if not (len(inside[0]) and len(inside[1])):
        return mask[:0, :0], (0, 0)
    # The positions inside the image are consecutive.
    rows, cols = (slice(int(i[0]), int(i[-1]) + 1) for i in inside)
    y, x = (t[i] for t, i in zip(targets, inside, strict=True))
    # Where rounding skips an image row or column, it stays empty.
    part = mask.new_full((int(y[-1] - y[0]) + 1, int(x[-1] - x[0]) + 1), -torch.inf)
    part[np.ix_(y - y[0], x - x[0])] = weights[rows] @ (mask @ weights[cols].T)
    return part, (int(y[0]), int(x[0]))

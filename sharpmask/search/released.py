"""Where the authors' released code puts windows and masks, for the use of its weights.

It differs from the geometry by pixel centres (:mod:`sharpmask_kernels.windows`) by up to some pixels: images are
resized corner to corner and without smoothing, masks are resized to a whole number of pixels and placed at one.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from sharpmask_kernels import Windows
from sharpmask_kernels.rle import encode
from sharpmask_kernels.windows import STRIDE


def resize(picture: Tensor, scale: float) -> Tensor:
    """picture (1, 3, h, w) at ``scale``: halves round up, the corners' centres stay corners' centres."""
    size = tuple(max(1, math.floor(side * scale + 0.5)) for side in picture.shape[2:])
    return F.interpolate(picture, size, mode="bilinear", align_corners=True)


def shift_windows(windows: Windows, columns: list[int]) -> Windows:
    """The mistake of the released code: a window is read off one row up and one column to the right.

    It takes the number of a cell, counted from 1, for one counted from 0 in its row, and from 1 in its column; so
    from the last column it goes to the first one of the same row. The first row stays. ``columns``: of each scale.
    """
    last = windows.col + 1 == torch.tensor(columns, device=windows.col.device)[windows.scale]
    row = torch.where(last, windows.row, (windows.row - 1).clamp(min=0))
    return windows._replace(row=row, col=torch.where(last, 0, windows.col + 1))


def resize_weights(length: int, size: int) -> npt.NDArray[np.float32]:
    """Weights (size, length) by which Torch's ``image.scale`` resizes one axis of ``length`` cells to ``size``.

    Enlarging is linear between the first and the last cell's centre; reducing averages over what a new cell covers.
    Positions are rounded to fp32 as there.
    """
    weights = np.zeros((size, length), dtype=np.float32)
    new = np.arange(size)
    if size > length:
        at = new.astype(np.float32) * np.float32((length - 1) / max(size - 1, 1))
        first = np.minimum(at.astype(np.int64), length - 1)
        part = at - first.astype(np.float32)
        # The last one is the last cell, whatever the rounding.
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
    """Image pixels, also outside the image, of the ``size`` pixels of a mask at a grid cell, along one axis."""
    start = cell * (STRIDE / scale) - window / 2 / scale
    return np.floor(start + np.arange(size)).astype(np.int64)


def encode_masks(
    logits: Tensor, windows: Windows, image_size: tuple[int, int], scales: list[float], window: int, threshold: float
) -> list[dict[str, object]]:
    """Logits (N, s, s) of windows of ``window`` pixels as COCO RLE of the image (h, w), as
    :func:`sharpmask_kernels.encode_windows` does it by pixel centres.

    A mask is enlarged or reduced to floor(window / scale) pixels and moved by whole pixels.
    """
    bound = math.log(threshold / (1 - threshold))
    weights: dict[int, Tensor] = {}
    masks: list[dict[str, object]] = []
    for mask, scale_index, row, col in zip(logits.float(), *(v.tolist() for v in windows[2:]), strict=True):
        scale = scales[scale_index]
        size = max(1, math.floor(window / scale))
        if scale_index not in weights:
            weights[scale_index] = torch.from_numpy(resize_weights(mask.shape[0], size)).to(mask.device)
        along = weights[scale_index]
        targets = [places(cell, scale, window, size) for cell in (row, col)]
        inside = [np.flatnonzero((t >= 0) & (t < side)) for t, side in zip(targets, image_size, strict=True)]
        if not (len(inside[0]) and len(inside[1])):
            masks.append({"size": list(image_size), "counts": encode(np.zeros((0, 0), bool), (0, 0), image_size)})
            continue
        # What lies inside is consecutive.
        rows, cols = (slice(int(i[0]), int(i[-1]) + 1) for i in inside)
        bits = ((along[rows] @ (mask @ along[cols].T)) > bound).cpu().numpy()
        y, x = (t[i] for t, i in zip(targets, inside, strict=True))
        canvas = np.zeros((y[-1] - y[0] + 1, x[-1] - x[0] + 1), dtype=bool)
        canvas[np.ix_(y - y[0], x - x[0])] = bits
        counts = encode(canvas, (int(y[0]), int(x[0])), image_size)
        masks.append({"size": list(image_size), "counts": counts})
    return masks

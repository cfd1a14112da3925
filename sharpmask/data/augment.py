"""Pieces of photos, resampled, and changed at random."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.uint8]
Region = tuple[slice, slice]


def resample(layer: Array, origin: tuple[float, float], scale: float, side: int, fill: int) -> tuple[Array, Region]:
    """The square of ``side`` pixels at ``origin`` (x, y) of ``layer`` after scaling by ``scale``.

    Pixels outside the layer are ``fill``. Returns the square, and the rows and columns that are inside.
    """
    out = np.full((side, side, *layer.shape[2:]), fill, dtype=np.uint8)
    spans = []
    for start, length in zip(origin, (layer.shape[1], layer.shape[0]), strict=True):
        first, last = max(0, round(-start)), min(side, round(length * scale - start))
        low = max(0.0, (first + start) / scale)
        spans.append((first, last, low, min(float(length), (last + start) / scale)))
    (x0, x1, left, right), (y0, y1, top, bottom) = spans
    if x1 > x0 and y1 > y0 and right > left and bottom > top:
        piece = Image.fromarray(layer).resize(
            (x1 - x0, y1 - y0), Image.Resampling.BILINEAR, (left, top, right, bottom), reducing_gap=2.0
        )
        out[y0:y1, x0:x1] = np.asarray(piece)
    return out, (slice(y0, max(y0, y1)), slice(x0, max(x0, x1)))


def jitter_colours(rng: np.random.Generator, image: Array) -> Array:
    """Change brightness, contrast, white balance and saturation at random; one image in 20 becomes greyscale."""
    saturation = 0.0 if rng.random() < 0.05 else 2 ** rng.uniform(-0.7, 0.5)
    gain = 2 ** (rng.uniform(-0.45, 0.45) + rng.uniform(-0.15, 0.15, 3))
    offset = rng.uniform(-20, 20)
    # Saturation, gain and white balance are linear in the colours, so one 3 x 3 matrix does them all.
    weights = np.array([0.299, 0.587, 0.114])
    matrix = (saturation * np.eye(3) + (1 - saturation) * weights[:, None]) * gain
    return (
        np.clip(image.reshape(-1, 3) @ matrix.astype(np.float32) + np.float32(offset), 0, 255)
        .astype(np.uint8)
        .reshape(image.shape)
    )


def shrink_and_enlarge(image: Array, factor: float) -> Array:
    """The image shrunk by ``factor`` and enlarged again, which blurs it."""
    side = image.shape[0]
    small = Image.fromarray(image).resize((round(side / factor),) * 2, Image.Resampling.BILINEAR)
    return np.array(small.resize((side, side), Image.Resampling.BILINEAR))


def cut_square(
    image: NDArray[np.uint8], x: float, y: float, side: float, size: int, outside: float
) -> NDArray[np.float32]:
    """A square of an image, uint8 (h, w) or (h, w, 3), resized to `size` pixels a side: float32 in [0, 1].

    The square is `side` pixels wide, has its centre at (x, y) and may leave the image. Result pixels that are not
    wholly inside become `outside`. The filter is bilinear, and antialiased when it shrinks.
    """
    result = np.full((size, size, *image.shape[2:]), outside, np.float32)
    columns, left, right = _inside(x, side, size, image.shape[1])
    rows, top, bottom = _inside(y, side, size, image.shape[0])
    if columns.start >= columns.stop or rows.start >= rows.stop:
        return result
    # The filter reads beyond the box by its support. Only that much of a large photo is handed over.
    margin = int(side / size) + 2
    x0, y0 = max(int(left) - margin, 0), max(int(top) - margin, 0)
    part = Image.fromarray(image[y0 : int(bottom) + margin + 1, x0 : int(right) + margin + 1])
    resized = part.resize(
        (columns.stop - columns.start, rows.stop - rows.start),
        Image.Resampling.BILINEAR,
        box=(left - x0, top - y0, min(right - x0, part.width), min(bottom - y0, part.height)),
    )
    result[rows, columns] = np.asarray(resized, np.float32) / np.float32(255)
    return result


def cut_mask(mask: NDArray[np.bool_], x: float, y: float, side: float, size: int) -> NDArray[np.float32]:
    """`cut_square` of a mask, bool (h, w): float32 (size, size), 1 where at least half of a pixel is set, else 0."""
    return (cut_square(mask.view(np.uint8) * np.uint8(255), x, y, side, size, 0.0) >= 0.5).astype(np.float32)


def _inside(centre: float, side: float, size: int, length: int) -> tuple[slice, float, float]:
    """On one axis: the result pixels wholly inside the image, and start and end of the stretch that they show."""
    start, step = centre - side / 2, side / size
    first = max(0, int(np.ceil(-start / step - 1e-9)))
    last = min(size, int(np.floor((length - start) / step + 1e-9)))
    return slice(first, last), max(start + first * step, 0.0), min(start + last * step, float(length))

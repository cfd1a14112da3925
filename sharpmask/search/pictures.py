"""What can be given as a photo, and the picture of it that is searched."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..data.images import load_photo, name_of, pixels_of, reduced
from ..data.orientation import Exif
from ..errors import DataError

ImageLike = str | Path | bytes | BinaryIO | Image.Image | npt.NDArray[np.uint8]
"""A file's path, its content, an open file, a PIL image, or a uint8 array (h, w, 3) in RGB."""


@dataclass(frozen=True)
class PhotoFile:
    """An image file whose pixels are read when they are asked for."""

    source: Path | bytes
    exif: Exif
    size: tuple[int, int]
    """(h, w) of its pixels, as ``exif`` names them."""

    def load(self, max_side: int | None = None) -> npt.NDArray[np.uint8]:
        """The pixels as :func:`sharpmask.data.images.load_photo` reads them; DataError if the size is another now."""
        header, pixels = load_photo(self.source, exif=self.exif, max_side=max_side)
        if header.size(self.exif) != self.size:
            raise DataError(f"{name_of(self.source)}: must be as it was when it was searched, but its size has changed")
        return pixels


class Picture(NamedTuple):
    """A photo to search."""

    pixels: npt.NDArray[np.uint8]
    """The photo as it is searched, uint8 (h', w', 3) RGB: reduced if it is much larger than the search needs."""
    size: tuple[int, int]
    """(h, w) of the photo itself."""
    photo: npt.NDArray[np.uint8] | PhotoFile
    """All of its pixels."""
    exif: Exif | None
    """Which pixels of a file or PIL image these are; None for an array."""


def see(image: ImageLike, exif: Exif, max_side: int | None) -> Picture:
    """The picture to search of a photo, its longer side at most ``max_side``. Arrays are not turned.

    Raises ``DataError`` for an unusable file, ``ValueError`` for what is no photo.
    """
    source = _source(image)
    if source is not None:
        header, pixels = load_photo(source, exif=exif, max_side=max_side)
        file = PhotoFile(source, exif, header.size(exif))
        return Picture(pixels, file.size, pixels if pixels.shape[:2] == file.size else file, exif)
    if isinstance(image, Image.Image):
        pixels = pixels_of(image, exif=exif)
    else:
        pixels = _array(image)
    size = pixels.shape[0], pixels.shape[1]
    return Picture(reduced(pixels, max_side), size, pixels, exif if isinstance(image, Image.Image) else None)


def _source(image: Any) -> Path | bytes | None:
    """The file that ``image`` names or holds, if it does."""
    if isinstance(image, str | os.PathLike):
        return Path(image)
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if not hasattr(image, "read"):
        return None
    content = image.read()
    if not isinstance(content, bytes):
        raise ValueError("image must be a file opened in binary mode, got one opened as text")
    return content


def _array(image: Any) -> npt.NDArray[np.uint8]:
    """A uint8 array (h, w, 3), contiguous. Raises ``ValueError`` for anything else, and says what to do with it."""
    if isinstance(image, list | tuple):
        kind = type(image).__name__
        raise ValueError(f"image must be one photo, got a {kind} of {len(image)}; call once for each photo")
    if not isinstance(image, np.ndarray):
        got, advice = f"{type(image).__module__}.{type(image).__qualname__}", ""
        if hasattr(image, "shape") and hasattr(image, "dtype"):
            got += f" {image.dtype} {tuple(image.shape)}"
            advice = "; convert it to a numpy array"
        raise ValueError(
            f"image must be uint8 (h, w, 3), a path, bytes, an open file or a PIL image, got {got}{advice}"
        )
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or min(image.shape) < 1:
        raise ValueError(f"image must be uint8 (h, w, 3), got {image.dtype} {image.shape}{_advice(image)}")
    # An array turned from BGR is a view with a negative stride, which PyTorch does not take.
    return np.ascontiguousarray(image)


def _advice(image: npt.NDArray[Any]) -> str:
    """How to make a photo of an array that is none."""
    if 0 in image.shape:
        return ""
    if image.ndim == 4:
        return "; call once for each photo of the batch"
    if image.ndim == 3 and image.shape[0] == 3 and image.shape[2] > 4:
        return "; image.transpose(1, 2, 0) puts the channels last"
    if image.dtype.kind == "f":
        return "; (image * 255).round().astype(np.uint8) converts values in [0, 1]"
    if image.dtype == np.uint8 and (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (2, 4))):
        return "; PIL.Image.fromarray(image) can be given instead"
    if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 1:
        return "; image.repeat(3, axis=2) makes RGB of grey"
    if image.dtype == np.uint16:
        return "; (image >> 8).astype(np.uint8) keeps the upper eight bits"
    return ""

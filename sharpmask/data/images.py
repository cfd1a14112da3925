"""Reading photos of any common kind as 8-bit RGB, safely: files may come from strangers."""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

from ..errors import DataError
from ..geometry import GREY_BYTE
from .orientation import TAG, Exif, checked, orientation_of, swaps_sides, turned

# Pillow opens other formats too, and some of them start programs (EPS runs Ghostscript).
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 200_000_000


class Header(NamedTuple):
    """What an image file says of itself before its pixels are decoded."""

    height: int
    """Of the stored pixels."""
    width: int
    orientation: int
    """The EXIF orientation, 1 to 8; 1 where the file states none."""

    def size(self, exif: Exif) -> tuple[int, int]:
        """(height, width) of the pixels that `exif` names."""
        turns = exif == "turned" and swaps_sides(self.orientation)
        return (self.width, self.height) if turns else (self.height, self.width)


def load_image(path: str | Path, *, exif: Exif = "turned", max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read an image file as a fresh uint8 array (h, w, 3), RGB.

    Greyscale, palette, CMYK and alpha images are converted. Transparent pixels are blended onto mid-grey (128).
    16-bit channels keep their upper eight bits. Only the first frame of an animation is read. The pixels come
    `turned` by the EXIF orientation, as viewers show them, or as `stored`. `FORMATS` lists the file formats.

    Raises DataError with one line that names the file if it is missing, not an image, truncated or otherwise
    damaged, has more than 16 bits per channel or more than `max_pixels` pixels. Pillow's own limit, by default
    179 million pixels, applies as well.
    """
    with _opened(path, max_pixels) as image:
        orientation = _orientation(image)
        pixels = np.array(to_rgb(image, path), dtype=np.uint8)
    return turned(pixels, orientation) if exif == "turned" else pixels


def read_header(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Header:
    """Size and EXIF orientation, without decoding pixels. Raises DataError as `load_image` does."""
    with _opened(path, max_pixels) as image:
        orientation = _orientation(image)
        return Header(image.height, image.width, orientation)


class ImageCache:
    """The most recently used photos, decoded, up to `max_bytes` of pixels.

    Arrays are read-only, because callers share them. A pickled copy, as in a data loader's worker, starts empty.
    """

    def __init__(self, max_bytes: int = 512 * 2**20, exif: Exif = "stored") -> None:
        self.max_bytes = max_bytes
        self.exif = exif
        self.used_bytes = 0
        self._images: OrderedDict[Path, NDArray[np.uint8]] = OrderedDict()
        self._lock = threading.Lock()

    def load(self, path: Path) -> NDArray[np.uint8]:
        """The image at `path`: read-only uint8 (h, w, 3), RGB. Raises DataError as `load_image` does."""
        with self._lock:
            if path in self._images:
                self._images.move_to_end(path)
                return self._images[path]
        image = load_image(path, exif=self.exif)
        image.setflags(write=False)
        self._keep(path, image)
        return image

    def _keep(self, path: Path, image: NDArray[np.uint8]) -> None:
        if image.nbytes > self.max_bytes:
            return
        with self._lock:
            if path in self._images:  # another thread was faster
                return
            self._images[path] = image
            self.used_bytes += image.nbytes
            while self.used_bytes > self.max_bytes:
                self.used_bytes -= self._images.popitem(last=False)[1].nbytes

    def __getstate__(self) -> dict[str, Any]:
        return {"max_bytes": self.max_bytes, "exif": self.exif}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


@contextmanager
def _opened(path: str | Path, max_pixels: int) -> Iterator[Image.Image]:
    """The opened image. All that Pillow raises inside the block becomes a DataError of one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # max_pixels is checked below
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > max_pixels:
                    raise DataError(f"{path}: must have at most {max_pixels} pixels, got {image.width}x{image.height}")
                yield image
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: no such image file") from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: not an image of a known format ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise DataError(f"{path}: too many pixels to be opened safely") from None
    except Exception as error:  # on damaged files Pillow's decoders raise nearly anything
        raise DataError(f"{path}: cannot be read as an image: {' '.join(str(error).split())}") from error


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of an image just opened, whose pixels come as stored from then on."""
    if not isinstance(image, TiffImageFile):
        return orientation_of(image.info.get("exif") or b"")
    orientation = checked(image.tag_v2.get(TAG))
    if orientation != 1:
        # Pillow turns TIFF files by itself, unless the tag is gone.
        del image.tag_v2[TAG]
        image.getexif().pop(TAG, None)
        image._size = image.tag_v2[IMAGEWIDTH], image.tag_v2[IMAGELENGTH]
    return orientation


def to_rgb(image: Image.Image, path: str | Path) -> Image.Image:
    """An image of any mode as RGB, converted as `load_image` describes. `path` names it in errors."""
    if image.mode.startswith("I"):  # 16-bit greyscale, which Pillow sometimes holds in 32 bits
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"{path}: must have at most 16 bits per channel, got 32")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise DataError(f"{path}: must have 8 or 16 bits per channel, got floating point")
    if image.has_transparency_data:
        # A transparent pixel shows nothing, like those outside an image, and gets the same grey.
        background = Image.new("RGBA", image.size, (*[GREY_BYTE] * 3, 255))
        return Image.alpha_composite(background, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")

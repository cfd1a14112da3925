"""Reading photos of any common kind as 8-bit RGB, safely: files may come from strangers."""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import DataError
from ..geometry import GREY_BYTE

# Pillow opens other formats too, and some of them start programs (EPS runs Ghostscript).
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 200_000_000


def load_image(path: str | Path, *, apply_exif: bool = True, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read an image file as a fresh uint8 array (h, w, 3), RGB.

    Greyscale, palette, CMYK and alpha images are converted. Transparent pixels are blended onto mid-grey (128).
    16-bit channels keep their upper eight bits. Only the first frame of an animation is read. `apply_exif` turns
    the image as its EXIF orientation says; set it to False if annotations refer to the stored pixels, as COCO's do.
    `FORMATS` lists the file formats.

    Raises DataError with one line that names the file if it is missing, not an image, truncated or otherwise
    damaged, has more than 16 bits per channel or more than `max_pixels` pixels. Pillow's own limit, by default
    179 million pixels, applies as well.
    """
    with _opened(path, max_pixels) as image:
        upright = ImageOps.exif_transpose(image) if apply_exif else image
        return np.array(to_rgb(upright, path), dtype=np.uint8)


def image_size(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(height, width) from the file's header, without decoding pixels. Raises DataError as `load_image` does."""
    with _opened(path, max_pixels) as image:
        return image.height, image.width


class ImageCache:
    """The most recently used photos, decoded and not turned by EXIF, up to `max_bytes` of pixels.

    Arrays are read-only, because callers share them. A pickled copy, as in a data loader's worker, starts empty.
    """

    def __init__(self, max_bytes: int = 512 * 2**20) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._images: OrderedDict[Path, NDArray[np.uint8]] = OrderedDict()
        self._lock = threading.Lock()

    def load(self, path: Path) -> NDArray[np.uint8]:
        """The image at `path`: read-only uint8 (h, w, 3), RGB. Raises DataError as `load_image` does."""
        with self._lock:
            if path in self._images:
                self._images.move_to_end(path)
                return self._images[path]
        image = load_image(path, apply_exif=False)
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
        return {"max_bytes": self.max_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["max_bytes"])  # type: ignore[misc]


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

"""Reading photos of any common kind as 8-bit RGB, safely: files may come from strangers."""

from __future__ import annotations

import io
import math
import os
import stat
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile
from PIL.TiffTags import TAGS_V2_GROUPS

from ..errors import DataError, one_line
from ..geometry import GREY_BYTE
from .containers import parts_of, without_exif
from .formats import FORMATS, readable_formats
from .orientation import TAG, Exif, checked, orientation_of, swaps_sides, turned

Source = str | Path | bytes
"""An image file: its path or its content."""

MAX_PIXELS: Final = 200_000_000
MAX_SIDE: Final = 65_535
"""The largest side that a JPEG can have."""
MAX_ASPECT: Final = 1000
"""The longer side over the shorter one."""
PLAIN_PIXELS: Final = 25_000_000
"""An image of more pixels must have a file of at least a byte for each ``PIXELS_PER_BYTE`` of them, as photos have."""
PIXELS_PER_BYTE: Final = 100
_STRIP_PIXELS: Final = 2**21  # converted to RGB at a time


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


def load_image(
    source: Source, *, exif: Exif = "turned", max_side: int | None = None, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Read an image file, or the bytes of one, as a fresh uint8 array (h, w, 3), RGB.

    Greyscale, palette, CMYK and alpha images are converted. Transparent pixels are blended onto mid-grey (128).
    16-bit channels keep their upper eight bits. Only the first frame of an animation is read. The pixels come
    `turned` by the EXIF orientation, as viewers show them, or as `stored`. Other metadata is not read, and may be
    damaged. :data:`sharpmask.data.formats.FORMATS` lists the file formats.

    An image whose longer side exceeds `max_side` is reduced to that side while it is read, which saves memory: a
    JPEG is decoded at an eighth of its size at best, and no format is held in full as RGB.

    Raises DataError with one line that names the file if it is missing, no regular file, not an image, truncated or
    otherwise damaged, or has more than 16 bits per channel; or if it is larger than the limits of this module:
    `max_pixels`, ``MAX_SIDE``, ``MAX_ASPECT``, and ``PIXELS_PER_BYTE`` for an image above ``PLAIN_PIXELS``, so that a
    small file takes little memory. Pillow's own limit, by default 179 million pixels, applies as well.
    """
    return load_photo(source, exif=exif, max_side=max_side, max_pixels=max_pixels)[1]


def load_photo(
    source: Source, *, exif: Exif = "turned", max_side: int | None = None, max_pixels: int = MAX_PIXELS
) -> tuple[Header, NDArray[np.uint8]]:
    """An image file's header, and its pixels as :func:`load_image` reads them."""
    if exif not in get_args(Exif):
        raise ValueError(f"exif must be one of {get_args(Exif)}, got {exif!r}")
    if max_side is not None and max_side < 1:
        raise ValueError(f"max_side must be at least 1 or None, got {max_side}")
    with _opened(source, max_pixels) as (image, header):
        pixels = _decode(image, max_side, name_of(source))
    return header, turned(pixels, header.orientation) if exif == "turned" else pixels


def read_header(source: Source) -> Header:
    """Size and EXIF orientation, without decoding pixels. Raises DataError as `load_image` does."""
    with _opened(source, MAX_PIXELS) as (_, header):
        return header


def pixels_of(image: Image.Image, *, exif: Exif = "turned") -> NDArray[np.uint8]:
    """The pixels of a PIL image as `load_image` gives those of a file.

    Pillow turns TIFF files by itself when it loads them, so they come turned.
    """
    check_size("image", image.width, image.height)
    image.load()
    pixels = _decode(image, None, "image")
    return turned(pixels, orientation_of(image.info.get("exif") or b"")) if exif == "turned" else pixels


def reduced(pixels: NDArray[np.uint8], max_side: int | None) -> NDArray[np.uint8]:
    """Pixels (h, w, 3) whose longer side is at most `max_side`; the same array if it is already."""
    if max_side is None or max(pixels.shape[:2]) <= max_side:
        return pixels
    return _decode(Image.fromarray(pixels), max_side, "image")


def name_of(source: Source) -> str:
    """How errors call an image file."""
    return "image" if isinstance(source, bytes) else one_line(str(source))


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


class _NoWarnings:
    """No warnings inside the block. Threads may be in it at once: the first sets the filter, the last resets it."""

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._filters.__exit__(None, None, None)


_no_warnings = _NoWarnings()


@contextmanager
def _opened(source: Source, max_pixels: int) -> Iterator[tuple[Image.Image, Header]]:
    """The opened image and its header. All that is raised inside the block becomes a DataError of one line."""
    name = name_of(source)
    try:
        # Pillow warns of limits, which are checked below, and of damaged metadata.
        with _no_warnings, _file(source) as file:
            parts = parts_of(file)
            formats = readable_formats(file)
            with Image.open(parts.joined(file) if parts else without_exif(file), formats=formats) as image:
                orientation = orientation_of(parts.exif) if parts else _orientation(image)
                check_size(name, image.width, image.height, max_pixels, file.seek(0, io.SEEK_END))
                file.seek(0)
                yield image, Header(image.height, image.width, orientation)
    except FileNotFoundError:
        raise DataError(f"{name}: no such image file") from None
    except UnidentifiedImageError:
        raise DataError(f"{name}: not an image of a known format ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise DataError(f"{name}: too many pixels to be opened safely") from None
    except MemoryError:
        raise DataError(f"{name}: takes more memory than there is; save it smaller") from None
    except DataError:
        raise
    except Exception as error:  # on damaged files Pillow's decoders raise nearly anything
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(f"{name}: cannot be read as an image: {' '.join(text.split())}") from error


def _file(source: Source) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    # Opening a pipe would wait for a writer.
    mode = os.stat(source).st_mode
    if not stat.S_ISREG(mode):
        raise ValueError("it is a folder" if stat.S_ISDIR(mode) else "it is a device, pipe or socket, not a file")
    return open(source, "rb")


def check_size(name: str, width: int, height: int, max_pixels: int = MAX_PIXELS, file_size: float = math.inf) -> None:
    """Raise ``DataError`` for a picture beyond the limits of this module."""
    size = f"{width}x{height}"
    if min(width, height) < 1:
        raise DataError(f"{name}: must have at least one pixel, got {size}")
    if width * height > max_pixels:
        raise DataError(f"{name}: must have at most {max_pixels} pixels, got {size}")
    if max(width, height) > MAX_SIDE:
        raise DataError(f"{name}: sides must have at most {MAX_SIDE} pixels, got {size}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise DataError(f"{name}: one side must be at most {MAX_ASPECT} times the other, got {size}")
    if width * height > max(PLAIN_PIXELS, PIXELS_PER_BYTE * file_size):
        least = -(-width * height // PIXELS_PER_BYTE)
        raise DataError(
            f"{name}: a file of {size} pixels must have at least {least} bytes, as photos have, got {file_size}; "
            "if it shows something, save it smaller"
        )


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of an image just opened, whose pixels come as stored from then on."""
    if not isinstance(image, TiffImageFile):
        return orientation_of(image.info.get("exif") or b"")
    orientation = checked(image.tag_v2.get(TAG))
    image.tag_v2.pop(TAG, None)
    image._size = image.tag_v2[IMAGEWIDTH], image.tag_v2[IMAGELENGTH]
    # Pillow turns TIFF files by itself, and reads all their metadata, unless it finds no tags for that.
    with suppress(Exception):
        image.getexif()
    for tag in (TAG, *TAGS_V2_GROUPS):
        image.getexif().pop(tag, None)
    return orientation


def _decode(image: Image.Image, max_side: int | None, name: str) -> NDArray[np.uint8]:
    """The pixels (h, w, 3) of an image, as stored, reduced to `max_side` if that is less."""
    height, width = image.height, image.width
    scale = min(1.0, (max_side or math.inf) / max(height, width))
    goal = max(1, round(width * scale)), max(1, round(height * scale))
    # A JPEG is decoded at a size between the image's and the goal's. Others know no draft.
    drafted = image.draft(None, goal) if scale < 1 else None
    right, bottom = drafted[1][2:] if drafted else (width, height)
    factor = max(1, min(image.width // goal[0], image.height // goal[1]))
    rows = factor * max(1, _STRIP_PIXELS // (factor * image.width))
    pixels = np.empty((-(-image.height // factor), -(-image.width // factor), 3), dtype=np.uint8)
    for top in range(0, image.height, rows):
        strip = to_rgb(image.crop((0, top, image.width, min(top + rows, image.height))), name)
        pixels[top // factor : (top + rows) // factor] = np.asarray(strip.reduce(factor) if factor > 1 else strip)
    if scale == 1:
        return pixels
    # The last row and column may cover less of the image than the others.
    box = (0, 0, right / factor, bottom / factor)
    return np.array(Image.fromarray(pixels).resize(goal, Image.Resampling.BILINEAR, box))


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """An image of any mode as RGB, converted as `load_image` describes. `name` stands for it in errors."""
    if image.mode.startswith("I"):  # 16-bit greyscale, which Pillow sometimes holds in 32 bits
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"{name}: must have at most 16 bits per channel, got 32")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise DataError(f"{name}: must have 8 or 16 bits per channel, got floating point")
    if image.mode == "La":  # grey multiplied by alpha, which Pillow turns into nothing but this
        image = image.convert("LA")
    if image.has_transparency_data:
        # A transparent pixel shows nothing, like those outside an image, and gets the same grey.
        background = Image.new("RGBA", image.size, (*[GREY_BYTE] * 3, 255))
        return Image.alpha_composite(background, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")

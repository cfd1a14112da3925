"""The formats of photos that are read, and the packages that some of them need."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import BinaryIO, Final

from PIL import Image, features

# Pillow opens other formats too, and some of them start programs (EPS runs Ghostscript).
FORMATS: Final = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "AVIF", "HEIF")
"""The formats, by Pillow's names. Only the first frame of an animation or a series is read."""
_SUFFIXES: Final = {".mpo": "JPEG", ".avif": "AVIF", ".avifs": "AVIF", ".heic": "HEIF", ".heif": "HEIF", ".hif": "HEIF"}
_BRANDS: Final = {b"avif": "AVIF", b"avis": "AVIF", b"mif1": "HEIF", b"msf1": "HEIF"} | dict.fromkeys(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"), "HEIF"
)
_DECODERS: Final = {"AVIF": "Pillow 11.3 or later with AVIF", "HEIF": "pillow-heif (pip install pillow-heif)"}


@cache
def photo_suffixes() -> frozenset[str]:
    """The suffixes of photos, in small letters with a dot, whether or not this installation can read them."""
    known = (suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS)
    return frozenset(known) | _SUFFIXES.keys()


def missing_decoder(suffix: str) -> str:
    """What must be installed to read files with a `suffix`; an empty text if nothing is missing."""
    kind = _SUFFIXES.get(suffix, "")
    return "" if _available(kind) else _DECODERS[kind]


def readable_formats(file: BinaryIO) -> tuple[str, ...]:
    """The formats in which Pillow may open `file`. Raises ValueError where it is of one that needs a package."""
    file.seek(0)
    start = file.read(12)
    kind = _BRANDS.get(start[8:12], "") if start[4:8] == b"ftyp" else ""
    if not _available(kind):
        raise ValueError(f"its format needs {_DECODERS[kind]}")
    if kind == "HEIF":
        _register_heif()
    file.seek(0)
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _available(kind: str) -> bool:
    Image.init()
    if kind == "AVIF":
        return "AVIF" in Image.OPEN and bool(features.check("avif"))
    return kind != "HEIF" or find_spec("pillow_heif") is not None


@cache
def _register_heif() -> None:
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False)

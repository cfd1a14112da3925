"""Metadata, however damaged, changes nothing about a photo but its EXIF orientation, which is read alone."""

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from sharpmask.data.images import Header, load_image, pixels_of, read_header
from sharpmask.data.orientation import orientation_of, turned

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)


def saved(kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, kind, **options)
    return file.getvalue()


PNG, JPEG = saved("png"), saved("jpeg", quality=95)


def exif_of(*entries: tuple[int, int, int, bytes], order: str = "<", start: int = 8) -> bytes:
    """An EXIF block of entries: tag, type, count, four bytes."""
    data = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, start) + bytes(start - 8)
    data += struct.pack(order + "H", len(entries))
    return data + b"".join(struct.pack(order + "HHI", *entry[:3]) + entry[3] for entry in entries) + bytes(4)


def orientation(value: int, kind: int = 3, count: int = 1, order: str = "<") -> tuple[int, int, int, bytes]:
    code = {1: "B", 3: "H", 4: "I", 11: "f"}[kind]
    return 0x0112, kind, count, struct.pack(order + code, value).ljust(4, b"\0")


GOOD = exif_of(orientation(6))
STATING_SIX = {
    "plain": GOOD,
    "big-endian": exif_of(orientation(6, order=">"), order=">"),
    "as a long": exif_of(orientation(6, kind=4)),
    "as a byte": exif_of(orientation(6, kind=1)),
    "behind entries that lead nowhere": exif_of(
        (271, 2, 2**32 - 1, b"\xf0" * 4), (272, 99, 5, b"zzzz"), orientation(6)
    ),
    "late": exif_of(orientation(6), start=100),
    "more entries claimed": GOOD[:8] + b"\xff\xff" + GOOD[10:],
    "a loop of directories": GOOD[:-4] + struct.pack("<I", 8),
    "broken positions of others": exif_of(orientation(6), (34853, 4, 1, b"\xff" * 4), (34665, 4, 1, b"\3\0\0\0")),
    "a resolution without a value": exif_of(
        orientation(6), (282, 5, 1, struct.pack("<I", 50)), (296, 3, 1, b"\2\0\0\0")
    ),
    "prefixed twice": b"Exif\0\0" + GOOD,
}
STATING_NOTHING = {
    "zeros": bytes(50),
    "a text": b"hello world",
    "the start alone": b"II*\0",
    "a directory outside": b"II*\0\xff\xff\xff\xff",
    "another byte order": b"MM*\0\x08\0\0\0",
    "noise": np.random.default_rng(1).bytes(500),
    "no orientation": exif_of((271, 2, 4, b"abc\0")),
    "0": exif_of(orientation(0)),
    "9": exif_of(orientation(9)),
    "no value": exif_of(orientation(6, count=0)),
    "a fraction": exif_of(orientation(6, kind=11)),
    "a text as value": exif_of((0x0112, 2, 2, b"6\0\0\0")),
}


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def segment(code: int, data: bytes) -> bytes:
    return struct.pack(">2BH", 0xFF, code, len(data) + 2) + data


def png_with(chunks: bytes, *, last: bool = False) -> bytes:
    """The PNG file with chunks before or after its pixels."""
    return PNG[:-12] + chunks + PNG[-12:] if last else PNG[:33] + chunks + PNG[33:]


def jpeg_with(segments: bytes) -> bytes:
    return JPEG[:2] + segments + JPEG[2:]


def files_with(exif: bytes) -> Iterator[bytes]:
    yield jpeg_with(segment(0xE1, b"Exif\0\0" + exif))
    yield png_with(chunk(b"eXIf", exif))
    yield png_with(chunk(b"eXIf", exif), last=True)
    yield saved("webp", lossless=True, exif=exif)


def assert_loads(data: bytes, stated: int) -> None:
    """The file has the pixels that it has without metadata, and an orientation of ``stated``."""
    assert read_header(data) == Header(24, 32, stated)
    stored = load_image(data, exif="stored")
    plain = load_image(JPEG) if data.startswith(JPEG[:3]) else PIXELS
    np.testing.assert_array_equal(stored, plain)
    np.testing.assert_array_equal(load_image(data), turned(plain, stated))


@pytest.mark.parametrize("name", STATING_SIX)
def test_the_orientation_is_found_in_odd_exif(name: str) -> None:
    for data in files_with(STATING_SIX[name]):
        assert_loads(data, 6)


@pytest.mark.parametrize("name", STATING_NOTHING)
def test_exif_that_states_no_orientation_is_ignored(name: str) -> None:
    for data in files_with(STATING_NOTHING[name]):
        assert_loads(data, 1)


def test_any_bytes_give_an_orientation() -> None:
    rng = np.random.default_rng(2)
    for length in range(200):
        assert 1 <= orientation_of(b"II*\0" + rng.bytes(length)) <= 8
        assert 1 <= orientation_of(GOOD[: length % len(GOOD)]) <= 8


PNG_CHUNKS = {
    "long text": chunk(b"tEXt", b"k\0" + b"a" * 3_000_000),
    "many texts": chunk(b"tEXt", b"k\0" + b"a" * 900_000) * 80,
    "a packed text of 50 MB": chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(50_000_000))),
    "a packed Unicode text of 50 MB": chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(bytes(50_000_000))),
    "a profile of 50 MB": chunk(b"iCCP", b"n\0\0" + zlib.compress(bytes(50_000_000))),
    "text that cannot be unpacked": chunk(b"zTXt", b"k\0\0noise") + chunk(b"zTXt", b"k\0\7noise"),
    "text that is no UTF-8": chunk(b"iTXt", b"k\0\0\0\xff\0\xff\0\xff\xfe"),
    "short ones": b"".join(chunk(kind, b"") for kind in (b"tEXt", b"iTXt", b"gAMA", b"sRGB", b"tIME", b"pHYs")),
    "a bad profile": chunk(b"iCCP", b"n\0\5noise"),
    "a wrong checksum": chunk(b"tEXt", b"k\0v")[:-1] + b"?",
    "an animation's": chunk(b"acTL", b"1") + chunk(b"fcTL", b"1"),
    "unknown": chunk(b"prVt", b"x" * 5000) + chunk(b"teXt", b"") * 5000,
    "an old EXIF text": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 8\nnoise\n"),
    "XMP": chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"'),
}


@pytest.mark.parametrize("name", PNG_CHUNKS)
@pytest.mark.parametrize("last", [False, True])
def test_chunks_that_are_no_pixels_are_not_read(name: str, last: bool) -> None:
    assert_loads(png_with(PNG_CHUNKS[name], last=last), 1)


MPF = b"MPF\0" + exif_of((45057, 4, 1, struct.pack("<I", 2)), (45058, 7, 32, struct.pack("<I", 9000)))
JPEG_SEGMENTS = {
    "a short profile": segment(0xE2, b"ICC_PROFILE\0") + segment(0xE2, b"ICC_PROFILE\0\1\5x"),
    "bad lists of pictures": segment(0xE2, b"MPF\0") + segment(0xE2, b"MPF\0noise") + segment(0xE2, MPF),
    "XMP": segment(0xE1, b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6">'),
    "cut Photoshop blocks": segment(0xED, b"Photoshop 3.0\0" + b"8BIM\x03\xed\0\0\0\0\0\x10abc"),
    "cut blocks of colour": segment(0xEE, b"Adobe") + segment(0xE0, b"JFIF"),
    "comments": segment(0xFE, b"c" * 60_000) * 20,
    "a thousand": segment(0xE5, b"y" * 1000) * 1000,
    "padding": b"\xff\xff" + segment(0xEF, b"x"),
}


@pytest.mark.parametrize("name", JPEG_SEGMENTS)
def test_segments_that_are_no_pixels_are_not_read(name: str) -> None:
    assert_loads(jpeg_with(JPEG_SEGMENTS[name]), 1)


def test_the_first_exif_of_a_jpeg_counts() -> None:
    assert_loads(jpeg_with(segment(0xE1, b"Exif\0\0" + GOOD) + segment(0xE1, b"Exif\0\0noise")), 6)


def test_colours_are_those_of_the_whole_file() -> None:
    """The segments that say how colours are stored are kept."""
    for mode, keep_rgb in (("CMYK", False), ("L", False), ("YCbCr", False), ("RGB", True)):
        file = io.BytesIO()
        Image.fromarray(PIXELS).convert(mode).save(file, "jpeg", quality=95, keep_rgb=keep_rgb)
        for data in (file.getvalue(), file.getvalue()[:2] + segment(0xFE, b"x") + file.getvalue()[2:]):
            expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
            np.testing.assert_array_equal(load_image(data), expected)


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "tiff", "lzw"])
def test_every_orientation_is_that_of_viewers(value: int, kind: str) -> None:
    """Pillow turns TIFF files by itself, so for them ``stored`` is the harder one."""
    exif = Image.Exif()
    exif[0x0112] = value
    options = {"compression": "tiff_lzw"} if kind == "lzw" else {}
    data = saved("png" if kind == "png" else "tiff", exif=exif, **options)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(saved("png", exif=exif)))))
    assert read_header(data) == Header(24, 32, value)
    assert read_header(data).size("turned") == expected.shape[:2]
    np.testing.assert_array_equal(load_image(data), expected)
    np.testing.assert_array_equal(load_image(data, exif="stored"), PIXELS)
    np.testing.assert_array_equal(pixels_of(Image.open(io.BytesIO(data))), expected)


def damaged(data: bytes) -> Iterator[bytes]:
    rng = np.random.default_rng(3)
    for _ in range(60):
        changed = bytearray(data)
        for place in rng.integers(0, len(data), 4):
            changed[place] = rng.integers(256)
        yield bytes(changed[: int(rng.integers(8, len(data) + 1))])


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff", "gif", "bmp"])
def test_damaged_files_load_or_are_refused_in_one_line(kind: str) -> None:
    load: Callable[[bytes], Any] = load_image
    for data in damaged(saved(kind, **({} if kind in ("gif", "bmp") else {"exif": GOOD}))):
        try:
            pixels = load(data)
        except ValueError as error:
            assert str(error).startswith("image: ") and "\n" not in str(error)
        else:
            assert pixels.dtype == np.uint8 and pixels.ndim == 3


def test_nothing_is_left_open(tmp_path: Any) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(20):
        load_image(path)
    assert not before or len(os.listdir("/proc/self/fd")) <= before + 2

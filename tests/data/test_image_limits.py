"""Memory: what is too large is refused by its header, and ``max_side`` bounds what is decoded."""

import io
import os
import socket
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sharpmask.data import images
from sharpmask.data.images import load_image, load_photo, read_header, reduced
from sharpmask.errors import DataError


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


def gif(width: int, height: int) -> bytes:
    """A GIF of one pixel on a large canvas."""
    picture = b",\0\0\0\0\1\0\1\0\0\2\2\x4c\1\0;"
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0" + b"\0\0\0\xff\xff\xff" + picture


def bmp(width: int, height: int) -> bytes:
    sizes = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + sizes


def tiff(width: int, height: int) -> bytes:
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: 10}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)


def jpeg(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "jpeg")
    data = bytearray(file.getvalue())
    place = data.find(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def webp(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "webp", lossless=True)
    frame = bytes(16) + file.getvalue()[12:]
    sizes = b"".join((side - 1).to_bytes(3, "little") for side in (width, height))
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\2\0\0\0" + sizes + b"ANIM" + struct.pack("<I", 6) + bytes(6)
    body += b"ANMF" + struct.pack("<I", len(frame)) + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


HUGE = {
    "gif": gif(13_000, 13_000),
    "png": png(13_000, 13_000),
    "png of bits": png(13_000, 13_000, 1, 0),
    "bmp": bmp(13_000, 13_000),
    "bmp upside down": bmp(13_000, -13_000),
    "ppm": b"P6 13000 13000 255\n",
    "tiff": tiff(13_000, 13_000),
    "jpeg": jpeg(13_000, 13_000),
    "webp": webp(13_000, 13_000),
}


@pytest.mark.parametrize("name", HUGE)
@pytest.mark.parametrize("max_side", [None, 800])
def test_a_small_file_of_many_pixels_is_refused(
    name: str, max_side: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(*_: object) -> None:
        pytest.fail("it must be refused before it is decoded")

    monkeypatch.setattr(Image.Image, "load", decode)
    with pytest.raises(DataError, match="image: a file of 13000x13000 pixels must have at least 1690000 bytes"):
        load_image(HUGE[name], max_side=max_side)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (png(1, 175_000_000), "sides must have at most 65535 pixels, got 1x175000000"),
        (png(175_000_000, 1), "sides must have at most 65535 pixels, got 175000000x1"),
        (png(10, 20_000), "one side must be at most 1000 times the other, got 10x20000"),
        (gif(65_535, 1), "one side must be at most 1000 times the other"),
        (png(2**31 - 1, 2**31 - 1), "pixels"),
        (bmp(5, -(2**31)), "pixels"),
        (webp(2**24, 1), "sides must have at most"),
        (png(0, 5), "image"),
        (b"P6 0 0 255\n", "image"),
    ],
)
def test_sides_and_their_ratio_are_bounded(data: bytes, said: str) -> None:
    for read in (load_image, read_header):
        with pytest.raises(DataError, match=said) as caught:
            read(data)
        assert "\n" not in str(caught.value)


def photo_file(kind: str, mode: str = "RGB", size: tuple[int, int] = (650, 450)) -> bytes:
    """A smooth picture, so that every good way to reduce it gives nearly the same."""
    rough = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8))
    file = io.BytesIO()
    picture = rough.resize(size, Image.Resampling.BICUBIC)
    picture = (
        picture.convert(mode) if mode != "I;16" else Image.fromarray(np.asarray(picture.convert("L"), np.uint16) << 8)
    )
    picture.save(file, kind, **({"lossless": True} if kind == "webp" else {"quality": 95} if kind == "jpeg" else {}))
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *(("jpeg", mode) for mode in ("RGB", "CMYK", "L")),
        *(("png", mode) for mode in ("RGB", "P", "1", "I;16", "LA")),
        *((kind, "RGB") for kind in ("webp", "tiff", "bmp", "ppm", "gif")),
    ],
)
def test_reduced_while_read(kind: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_STRIP_PIXELS", 100_000)
    data = photo_file(kind, mode)
    whole = load_image(data)
    # Single pixels of a dithered picture say little.
    for side in (65, 20) if mode in ("P", "1") or kind == "gif" else (649, 325, 200, 65, 20):
        small = load_image(data, max_side=side)
        assert small.shape == (max(1, round(450 * side / 650)), side, 3)
        expected = np.asarray(Image.fromarray(whole).resize(small.shape[1::-1], Image.Resampling.BOX))
        assert np.abs(small.astype(int) - expected).mean() < 3
        np.testing.assert_allclose(reduced(whole, side).mean((0, 1)), small.mean((0, 1)), atol=2)
    np.testing.assert_array_equal(load_image(data, max_side=650), whole)
    header, _ = load_photo(data, max_side=100)
    assert header[:2] == (450, 650)


def test_a_jpeg_is_decoded_at_a_smaller_size(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    original = Image.Image.crop

    def crop(self: Image.Image, box: tuple[int, ...]) -> Image.Image:
        decoded.append(self.size)
        return original(self, box)

    monkeypatch.setattr(Image.Image, "crop", crop)
    assert load_image(photo_file("jpeg"), max_side=80).shape == (55, 80, 3)
    assert set(decoded) == {(82, 57)}, "an eighth"


def test_no_format_is_converted_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_STRIP_PIXELS", 20_000)
    largest = []
    original = images.to_rgb

    def to_rgb(image: Image.Image, name: str) -> Image.Image:
        largest.append(image.width * image.height)
        return original(image, name)

    monkeypatch.setattr(images, "to_rgb", to_rgb)
    whole = load_image(photo_file("png", "P"))
    assert whole.shape == (450, 650, 3) and max(largest) <= 20_000


def test_a_turned_photo_is_reduced_by_its_longer_side() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.new("RGB", (400, 300)).save(file, "jpeg", exif=exif)
    assert load_image(file.getvalue(), max_side=100).shape == (100, 75, 3)
    assert load_image(file.getvalue(), max_side=100, exif="stored").shape == (75, 100, 3)


def test_out_of_memory_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(photo_file("png"))

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "crop", fail)
    with pytest.raises(DataError, match=r"a\.png: takes more memory than there is"):
        load_image(tmp_path / "a.png")


def test_only_regular_files_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to(tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
    for name, said in (
        ("pipe.jpg", "it is a device, pipe or socket"),
        ("socket.jpg", "it is a device, pipe or socket"),
        ("folder.jpg", "it is a folder"),
        ("link.jpg", "no such image file"),
        ("x\0.jpg", "null"),
    ):
        with pytest.raises(DataError, match=said) as caught:
            load_image(tmp_path / name)
        assert name.split("\0")[0] in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(DataError, match="/dev/zero: cannot be read as an image: it is a device"):
        load_image("/dev/zero")


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    for kind in ("gif", "png", "webp", "tiff"):
        path = tmp_path / f"a.{kind}"
        frames[0].save(path, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "webp" else {}))
        assert load_image(path)[0, 0].tolist() == [255, 0, 0], kind

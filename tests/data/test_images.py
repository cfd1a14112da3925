from __future__ import annotations

import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sharpmask.data.images import Header, ImageCache, load_image, read_header
from sharpmask.errors import DataError


def gradient(height: int = 24, width: int = 32) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([8 * x, 10 * y, 4 * (x + y)], -1).astype(np.uint8)


@pytest.fixture
def rgb(tmp_path: Path) -> Path:
    Image.fromarray(gradient()).save(tmp_path / "rgb.png")
    return tmp_path / "rgb.png"


def test_rgb_png_is_exact_and_writable(rgb: Path) -> None:
    image = load_image(rgb)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, gradient())
    image[:] = 0
    assert read_header(rgb) == Header(24, 32, 1)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr"])
def test_other_modes_come_out_as_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(gradient()).convert(mode)
    suffix = {"CMYK": "tif", "YCbCr": "jpg"}.get(mode, "png")
    image.save(tmp_path / f"a.{suffix}")
    expected = np.asarray(image.convert("RGB")).astype(int)
    difference = np.abs(load_image(tmp_path / f"a.{suffix}").astype(int) - expected)
    assert difference.max() <= (40 if mode == "YCbCr" else 0)
    assert difference.mean() < 4


def test_sixteen_bits_keep_the_upper_eight(tmp_path: Path) -> None:
    values = np.array([[0, 255, 256], [32768, 65279, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    np.testing.assert_array_equal(load_image(tmp_path / "a.png")[..., 0], [[0, 0, 1], [128, 254, 255]])


@pytest.mark.parametrize("values", [np.array([[70000]], np.int32), np.array([[0.5]], np.float32)])
def test_deeper_channels_are_refused(tmp_path: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif: must have .*16 bits"):
        load_image(tmp_path / "a.tif")


def test_transparency_becomes_mid_grey(tmp_path: Path) -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 0] = 255
    rgba[0, :, 3] = [0, 128, 255]
    Image.fromarray(rgba).save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png")[0].astype(int)
    assert abs(image - [[128, 128, 128], [192, 64, 64], [255, 0, 0]]).max() <= 1


def test_transparent_palette_entry_becomes_mid_grey(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.save(tmp_path / "a.png", transparency=0)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), [[[128] * 3, [0, 0, 255]]])


def test_exif_orientation_is_applied_on_request(tmp_path: Path) -> None:
    image = Image.fromarray(gradient())
    exif = image.getexif()
    exif[274] = 6  # turn 90 degrees clockwise to see it upright
    image.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png", exif="stored"), gradient())
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), np.rot90(gradient(), -1))
    assert read_header(tmp_path / "a.png") == Header(24, 32, 6)
    assert read_header(tmp_path / "a.png").size("turned") == (32, 24)


def test_one_pixel(tmp_path: Path) -> None:
    Image.fromarray(np.full((1, 1, 3), 7, np.uint8)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), [[[7, 7, 7]]])


def assert_refused(path: Path, match: str) -> None:
    with pytest.raises(DataError, match=match) as caught:
        load_image(path)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "tif", "bmp"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"cut.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert_refused(path, "cannot be read|not an image")


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    assert_refused(tmp_path / "text.jpg", "not an image")
    assert_refused(tmp_path / "empty.png", "not an image")
    assert_refused(tmp_path / "missing.png", "no such image file")
    assert_refused(tmp_path / "folder.png", "cannot be read")


def test_formats_that_start_programs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    assert_refused(tmp_path / "a.png", "not an image")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("side", [15_000, 60_000])
def test_decompression_bombs_are_refused_before_decoding(tmp_path: Path, side: int) -> None:
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(data)
    assert_refused(tmp_path / "bomb.png", "pixels")
    with pytest.raises(DataError, match="pixels"):
        read_header(tmp_path / "bomb.png")


def test_settings_are_checked(rgb: Path) -> None:
    with pytest.raises(ValueError, match="exif must be one of"):
        load_image(rgb, exif="upright")  # type: ignore[arg-type]
    for side in (0, -5):
        with pytest.raises(ValueError, match=f"max_side must be at least 1 or None, got {side}"):
            load_image(rgb, max_side=side)


def test_max_pixels(rgb: Path) -> None:
    load_image(rgb, max_pixels=24 * 32)
    with pytest.raises(DataError, match=r"rgb\.png: must have at most 767 pixels, got 32x24"):
        load_image(rgb, max_pixels=24 * 32 - 1)


def save_numbered(folder: Path, count: int) -> list[Path]:
    paths = [folder / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        Image.fromarray(np.full((10, 10, 3), number, np.uint8)).save(path)
    return paths


def test_cache_keeps_the_most_recent_within_its_bytes(tmp_path: Path) -> None:
    paths = save_numbered(tmp_path, 3)
    cache = ImageCache(max_bytes=2 * 300)
    first, second = cache.load(paths[0]), cache.load(paths[1])
    assert cache.load(paths[0]) is first
    cache.load(paths[2])  # pushes out the second, which was not used for longest
    assert cache.used_bytes == 600
    assert cache.load(paths[0]) is first
    assert cache.load(paths[1]) is not second


def test_cache_passes_on_what_is_too_large_for_it(tmp_path: Path) -> None:
    (path,) = save_numbered(tmp_path, 1)
    cache = ImageCache(max_bytes=299)
    assert cache.load(path) is not cache.load(path)
    assert cache.used_bytes == 0


def test_cached_images_cannot_be_changed(tmp_path: Path) -> None:
    (path,) = save_numbered(tmp_path, 1)
    with pytest.raises(ValueError, match="read-only"):
        ImageCache().load(path)[0] = 1


def test_pickled_cache_starts_empty(tmp_path: Path) -> None:
    (path,) = save_numbered(tmp_path, 1)
    cache = ImageCache(max_bytes=1000)
    cache.load(path)
    copy = pickle.loads(pickle.dumps(cache))
    assert (copy.max_bytes, copy.used_bytes) == (1000, 0)
    np.testing.assert_array_equal(copy.load(path), cache.load(path))

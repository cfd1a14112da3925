"""Which files of a folder are photos to search, and what is said of the others."""

import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from sharpmask.data import formats
from sharpmask.data.images import load_image
from sharpmask.data.photos import find_photos
from sharpmask.errors import DataError
from sharpmask.plots import save_figure
from sharpmask.visualize import save_picture

PICTURE = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)


def save(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PICTURE).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two photos, two more below, and one of each thing that is none."""
    root = tmp_path / "holiday"
    for name in ("b.JPG", "a.png", "day 1/c.webp", "day 1/late/d.tiff"):
        save(root / name)
    for name in ("notes.txt", "list.json", "x.svg", ".hidden.jpg", "IMG.HEIC"):
        (root / name).write_text("x")
    (root / "folder.jpg").mkdir()
    os.mkfifo(root / "pipe.jpg")
    (root / "broken.jpg").symlink_to(root / "nowhere.jpg")
    (root / "again").symlink_to(root, target_is_directory=True)
    return root


def test_a_folder_s_photos_are_found_and_the_rest_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda _: None)
    found = find_photos([folder])
    assert [photo.name for photo in found.photos] == ["a.png", "b.JPG"]
    assert [photo.path for photo in found.photos] == [folder / "a.png", folder / "b.JPG"]
    (line,) = found.passed_over
    assert line.startswith(f"{folder}: passed over: ") and "\n" not in line
    for told in (
        "3 subfolders (--recursive looks into them), e.g. again",
        "3 files of another kind, e.g. list.json",
        "1 hidden file: .hidden.jpg",
        "1 photo that needs pillow-heif (pip install pillow-heif): IMG.HEIC",
        "1 device or pipe: pipe.jpg",
        "1 broken link: broken.jpg",
    ):
        assert told in line, line


def test_recursive_looks_into_subfolders_but_not_into_links(folder: Path) -> None:
    found = find_photos([folder], recursive=True)
    assert [photo.name for photo in found.photos] == ["a.png", "b.JPG", "day 1/c.webp", "day 1/late/d.tiff"]
    assert all(photo.path == folder / photo.name for photo in found.photos)
    (line,) = found.passed_over
    assert "subfolder" not in line and "1 link to a folder: again" in line


def test_no_photo_comes_twice(folder: Path) -> None:
    given = [folder / "b.JPG", folder, folder / "day 1" / ".." / "a.png", Path(os.path.relpath(folder / "a.png"))]
    found = find_photos(given)
    assert [photo.path.name for photo in found.photos] == ["b.JPG", "a.png"]


def test_what_was_given_is_searched_whatever_it_is(folder: Path) -> None:
    """A file that was named is told of when it cannot be read; it is not passed over."""
    for name in ("notes.txt", ".hidden.jpg", "pipe.jpg", "missing.jpg"):
        assert [photo.path for photo in find_photos([folder / name]).photos] == [folder / name]


def test_nothing_to_search_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="images must be photos or folders of photos, got none"):
        find_photos([])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no image file in this folder$"):
        find_photos([tmp_path / "empty"])
    save(tmp_path / "deep" / "er" / "a.png")
    with pytest.raises(DataError, match=r"no image file in this folder; passed over: 1 subfolder \(--recursive"):
        find_photos([tmp_path / "deep"])


def test_a_plain_folder_says_nothing(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    assert find_photos([tmp_path]).passed_over == []


def test_drawn_pictures_are_no_photos(tmp_path: Path) -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    save(tmp_path / "photo.png")
    save(tmp_path / "photo.jpg")
    for name in ("overlay.png", "overlay.jpg", "shot.JPEG"):
        save_picture(PICTURE, tmp_path / name)
    save_figure(figure, tmp_path / "plot.png")
    save_figure(figure, tmp_path / "plot.jpg")
    found = find_photos([tmp_path])
    assert [photo.name for photo in found.photos] == ["photo.jpg", "photo.png"]
    assert "5 pictures that sharpmask drew, e.g. overlay.jpg" in found.passed_over[0]


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif(tmp_path: Path) -> None:
    path = tmp_path / "a.avif"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PICTURE).save(path, quality=100, subsampling="4:4:4", exif=exif)
    assert [photo.name for photo in find_photos([tmp_path]).photos] == ["a.avif"]
    stored = load_image(path, exif="stored")
    assert np.abs(stored.astype(int) - PICTURE).mean() < 12
    np.testing.assert_array_equal(load_image(path), np.rot90(stored, -1))


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif_with_damaged_exif(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a maker"
    path = tmp_path / "a.avif"
    Image.fromarray(PICTURE).save(path, exif=exif)
    expected, data = load_image(path), path.read_bytes()
    path.write_bytes(data.replace(b"MM\0*", b"noise"[:4]).replace(b"II*\0", b"noise"[:4]))
    assert path.read_bytes() != data
    np.testing.assert_array_equal(load_image(path), expected)


def test_names_that_do_not_print_stay_on_one_line(tmp_path: Path) -> None:
    name = os.fsdecode(b"a\nb\xff.txt")
    (tmp_path / name).write_text("x")
    save(tmp_path / "c.png")
    (line,) = find_photos([tmp_path]).passed_over
    assert line.endswith(r"1 file of another kind: a\nb\udcff.txt")
    with pytest.raises(DataError) as caught:
        load_image(tmp_path / name)
    assert r"a\nb\udcff.txt: not an image" in str(caught.value)


def test_formats_without_a_decoder_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda _: None)
    monkeypatch.setattr(formats.features, "check", lambda _: False)
    for brand, package in ((b"heic", "pillow-heif"), (b"mif1", "pillow-heif"), (b"avif", "Pillow 11.3 or later")):
        with pytest.raises(DataError, match=f"image: cannot be read as an image: its format needs {package}"):
            load_image(b"\0\0\0\x1cftyp" + brand + bytes(20))
    assert find_spec("PIL")

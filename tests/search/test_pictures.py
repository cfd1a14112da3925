"""What may be given as a photo, what is said of what may not, and how large photos are searched."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from sharpmask.data.images import load_image
from sharpmask.errors import DataError
from sharpmask.models import SharpMask
from sharpmask.models.config import Geometry, SearchConfig
from sharpmask.search.generator import ProposalGenerator
from sharpmask.search.pictures import PhotoFile, see
from sharpmask.search.proposals import Proposals, resized


@pytest.fixture(scope="module")
def photo(synth: Path) -> np.ndarray:
    return load_image(synth / "images" / "000002.png")


@pytest.fixture
def generator(tiny_sharpmask: SharpMask) -> ProposalGenerator:
    return ProposalGenerator(tiny_sharpmask, top_n=10)


def saved(pixels: np.ndarray, kind: str = "png", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def test_files_and_their_content_are_photos(generator: ProposalGenerator, photo: np.ndarray, tmp_path: Path) -> None:
    expected = generator.generate(photo).rles
    data = saved(photo)
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with open(path, "rb") as file:
        given = [path, str(path), data, bytearray(data), memoryview(data), io.BytesIO(data), file]
        for image in given:
            found = generator.generate(image)
            assert found.rles == expected and np.array_equal(found.image, photo), type(image)
            assert (found.size, found.exif) == (photo.shape[:2], "turned")
    assert generator.generate(photo).exif is None
    found = generator.generate(Image.fromarray(photo))
    assert found.rles == expected and found.exif == "turned"


class Half:
    shape, dtype = (3, 9, 9), "float16"


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ([np.zeros((9, 9, 3), np.uint8)] * 2, "image must be one photo, got a list of 2; call once for each photo"),
        ((), "image must be one photo, got a tuple of 0"),
        (np.zeros((2, 9, 9, 3), np.uint8), r"got uint8 \(2, 9, 9, 3\); call once for each photo of the batch"),
        (np.zeros((3, 9, 9), np.uint8), r"image.transpose\(1, 2, 0\) puts the channels last"),
        (np.zeros((9, 9, 3), np.float32), r"\(image \* 255\).round\(\).astype\(np.uint8\) converts"),
        (np.zeros((9, 9), np.uint8), r"PIL.Image.fromarray\(image\) can be given instead"),
        (np.zeros((9, 9, 4), np.uint8), r"PIL.Image.fromarray\(image\) can be given instead"),
        (np.zeros((9, 9, 1), np.uint8), r"image.repeat\(3, axis=2\) makes RGB of grey"),
        (np.zeros((9, 9, 3), np.uint16), r"\(image >> 8\).astype\(np.uint8\)"),
        (np.zeros((0, 9, 3), np.uint8), r"got uint8 \(0, 9, 3\)$"),
        (np.zeros((9, 9, 3), bool), r"got bool \(9, 9, 3\)$"),
        (torch.zeros(3, 9, 9), r"got torch.Tensor torch.float32 \(3, 9, 9\); convert it to a numpy array"),
        (Half(), r"float16 \(3, 9, 9\); convert it to a numpy array"),
        (None, "an open file or a PIL image, got builtins.NoneType"),
        (7, "got builtins.int"),
        (io.StringIO("text"), "image must be a file opened in binary mode"),
        (b"", "image: not an image of a known format"),
        ("https://example.org/a.jpg", "no such image file"),
    ],
)
def test_what_is_no_photo_is_told_what_to_do(generator: ProposalGenerator, image: Any, said: str) -> None:
    for search in (generator.generate, generator.grow):
        with pytest.raises(ValueError, match=said) as caught:
            search(image)
        assert "\n" not in str(caught.value)


def test_advice_works(generator: ProposalGenerator, photo: np.ndarray) -> None:
    grey = photo[..., :1]
    expected = generator.generate(grey.repeat(3, axis=2)).rles
    assert generator.generate(Image.fromarray(grey[..., 0])).rles == expected
    rgba = np.concatenate([photo, np.full_like(grey, 255)], 2)
    expected = generator.generate(photo).rles
    for image in (
        Image.fromarray(rgba),
        (photo.astype(np.float32) / 255 * 255).round().astype(np.uint8),
        photo.transpose(2, 0, 1).transpose(1, 2, 0),
        (photo.astype(np.uint16) << 8 >> 8).astype(np.uint8),
    ):
        assert generator.generate(image).rles == expected


def test_masks_are_of_the_pixels_that_exif_names(
    generator: ProposalGenerator, photo: np.ndarray, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.png"
    path.write_bytes(saved(photo, exif=exif))
    turned, stored = generator.generate(path), replace(generator, exif="stored").generate(path)
    assert (turned.size, turned.exif) == (photo.shape[1::-1], "turned")
    assert (stored.size, stored.exif) == (photo.shape[:2], "stored")
    assert stored.rles == generator.generate(photo).rles
    assert turned.rles == generator.generate(np.rot90(photo, -1)).rles
    assert replace(generator, exif="stored").generate(Image.open(path)).rles == stored.rles
    with pytest.raises(ValueError, match="exif must be one of 'turned', 'stored', got 'upright'"):
        replace(generator, exif="upright")  # type: ignore[arg-type]


def large(photo: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(photo).resize((1600, 1200), Image.Resampling.BICUBIC))


def overlap(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> float:
    """The mean over a's masks of the best overlap with one of b's."""
    return float(np.asarray(coco_mask.iou(a, b, [0] * len(b))).max(1).mean())


@pytest.mark.parametrize("geometry", ["centres", "released"])
def test_a_large_photo_is_reduced_before_floats_are_made(
    tiny_sharpmask: SharpMask, photo: np.ndarray, geometry: Geometry, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = SearchConfig(scales=(0.5, 1.0), geometry=geometry)
    generator = ProposalGenerator(tiny_sharpmask, 10, search=search, max_side=160)
    pixels = large(photo)
    sizes = []
    original = ProposalGenerator.look

    def look(self: ProposalGenerator, picture: Any, watch: Any, choose: Any) -> Any:
        maps = original(self, picture, watch, choose)
        sizes.append(maps.picture.pixels.shape)
        return maps

    monkeypatch.setattr(ProposalGenerator, "look", look)
    found = generator.generate(pixels)
    assert sizes == [(240, 320, 3)], "twice what the search needs"
    assert found.size == (1200, 1600) == tuple(found.rles[0]["size"])
    same_scales = SearchConfig(scales=(0.05, 0.1), geometry=geometry)
    whole = ProposalGenerator(tiny_sharpmask, 10, search=same_scales, max_side=None).generate(pixels)
    assert sizes[1] == (1200, 1600, 3)
    # The released geometry resizes without smoothing, so it shows what the photo's single pixels happen to be.
    assert geometry == "released" or overlap(found.rles, whole.rles) > 0.9
    assert np.array_equal(found.image, pixels)


def test_a_large_file_is_decoded_only_as_far_as_needed(
    tiny_sharpmask: SharpMask, photo: np.ndarray, tmp_path: Path
) -> None:
    generator = ProposalGenerator(tiny_sharpmask, 10, max_side=160)
    path = tmp_path / "a.jpg"
    path.write_bytes(saved(large(photo), "jpeg", quality=95))
    found = generator.generate(path)
    assert isinstance(found.photo, PhotoFile) and found.size == (1200, 1600)
    whole = generator.generate(load_image(path))
    assert found.masks().shape == (len(found), 1200, 1600) and overlap(found.rles, whole.rles) > 0.9
    assert generator.generate(path.read_bytes()).rles == found.rles
    found.save_overlay(tmp_path / "small.png", max_side=400)
    found.save_overlay(tmp_path / "whole.png", max_side=None)
    assert load_image(tmp_path / "small.png").shape == (300, 400, 3)
    small, drawn = load_image(tmp_path / "small.png"), load_image(tmp_path / "whole.png", max_side=400)
    assert np.abs(small.astype(int) - drawn).mean() < 12, "the same masks on both"
    assert np.array_equal(found.image, load_image(path)) and found.image is found.image
    path.write_bytes(saved(photo, "jpeg"))
    with pytest.raises(DataError, match=r"a\.jpg: must be as it was when it was searched"):
        found.save_overlay(tmp_path / "late.png")


def test_a_mask_at_another_size() -> None:
    mask = np.zeros((60, 80), np.uint8, order="F")
    mask[20:40, 10:50] = 1
    small = coco_mask.decode(resized(dict(coco_mask.encode(mask)), (6, 8)))
    expected = np.zeros((6, 8), np.uint8)
    expected[2:4, 1:5] = 1
    assert np.array_equal(small, expected)


def test_overlays_are_what_their_suffix_says(photo: np.ndarray, tmp_path: Path) -> None:
    mask = coco_mask.encode(np.asfortranarray(np.ones(photo.shape[:2], np.uint8)))
    found = Proposals(photo, [dict(mask)], np.ones(1, np.float32))
    for name, kind in (("a.png", "PNG"), ("a.jpg", "JPEG"), ("b.JPEG", "JPEG")):
        found.save_overlay(tmp_path / name)
        assert Image.open(tmp_path / name).format == kind
    for name in ("a.gif", "a", "a.webp", "a.png.bak"):
        with pytest.raises(ValueError, match=r"a picture's name must end in \.png, \.jpg, \.jpeg, got"):
            found.save_overlay(tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jpg", "a.png", "b.JPEG"]


@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_pictures_multiplied_by_their_transparency(mode: str) -> None:
    plain = Image.new("LA" if mode == "La" else "RGBA", (8, 6))
    plain.putpixel((3, 2), (200, 255) if mode == "La" else (200, 200, 200, 255))
    pixels = see(plain.convert(mode), "turned", None).pixels
    assert pixels.shape == (6, 8, 3) and pixels[2, 3].tolist() == [200] * 3 and pixels[0, 0].tolist() == [128] * 3


@pytest.mark.parametrize("shape", [(), (3,), (0,)])
def test_arrays_of_few_dimensions_are_refused_in_one_line(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"image must be uint8 \(h, w, 3\), got uint8 \("):
        see(np.zeros(shape, np.uint8), "turned", None)

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sharpmask.data import synthetic, textures
from sharpmask.data.coco import CocoFolder
from sharpmask.data.shapes import FAMILIES, draw_shape, random_shape
from sharpmask.data.synthetic import synthesize
from sharpmask.data.textures import load_texture_photos, random_texture
from sharpmask.errors import DataError


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> CocoFolder:
    out = tmp_path_factory.mktemp("synthetic") / "set"
    assert synthesize(out, images=12, seed=3, textures="generated") == out
    return CocoFolder(out)


def test_photos_and_annotations(dataset: CocoFolder) -> None:
    assert [photo.id for photo in dataset.photos] == list(range(1, 13))
    assert list(dataset.categories.values()) == list(FAMILIES)
    assert {path.name for path in dataset.root.parent.iterdir()} == {"set"}  # no temporary folder is left
    instances = [instance for photo in dataset.photos for instance in photo.instances]
    assert {instance.category_id for instance in instances} == {1, 2, 3, 4, 5}
    for photo in dataset.photos:
        assert photo.load().shape == (240, 320, 3)
        assert 3 <= len(photo.instances) <= 8


def test_masks_are_the_visible_parts(dataset: CocoFolder) -> None:
    cut = 0
    for photo in dataset.photos:
        masks = [instance.mask() for instance in photo.instances]
        assert np.sum(masks, axis=0).max() == 1
        for instance, mask in zip(photo.instances, masks, strict=True):
            assert instance.area == mask.sum() >= 64
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            width, height = columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1
            assert instance.box == (columns[0], rows[0], width, height)
            assert max(width, height) <= 0.6 * 320 + 2
            cut += any(
                (other & np.roll(mask, shift, axis)).any()
                for other in masks
                if other is not mask
                for axis in (0, 1)
                for shift in (-1, 1)
            )
    assert cut > 5  # objects that touch others: there is occlusion


def test_objects_differ_from_what_surrounds_them(dataset: CocoFolder) -> None:
    """The picture shows what the masks say: colours on both sides of most outlines differ."""
    contrasts = []
    for photo in dataset.photos:
        pixels = photo.load().astype(float)
        for instance in photo.instances:
            mask = instance.mask()
            near = np.zeros_like(mask)
            for shift in range(-6, 7):
                near |= np.roll(mask, shift, 0) | np.roll(mask, shift, 1)
            contrasts.append(np.abs(pixels[mask].mean(0) - pixels[near & ~mask].mean(0)).max())
    assert np.median(contrasts) > 30


def test_masks_end_where_objects_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """White objects on black: over all outlines, mask and brightness change at the same place."""
    shades = iter([0, 200] * 20)

    def flat(_: object, height: int, width: int, __: object) -> np.ndarray:
        return np.full((height, width, 3), next(shades), np.float32)

    monkeypatch.setattr(synthetic, "random_texture", flat)
    synthesize(tmp_path / "a", images=20, seed=1, objects=(1, 1), textures="generated")
    offsets = []
    for photo in CocoFolder(tmp_path / "a").photos:
        mask = photo.instances[0].mask()
        pixels = photo.load().mean(-1)
        bright = pixels > np.median(pixels[mask]) / 2
        outline = (mask ^ np.roll(mask, 1, 0)).sum() + (mask ^ np.roll(mask, 1, 1)).sum()
        offsets.append((int(mask.sum()) - int(bright.sum())) / outline)
    assert abs(np.mean(offsets)) < 0.1  # pixels


def test_enough_objects_stay_visible(tmp_path: Path) -> None:
    synthesize(tmp_path / "a", images=8, seed=0, size=(120, 120), objects=(6, 6), textures="generated")
    assert all(len(photo.instances) == 6 for photo in CocoFolder(tmp_path / "a").photos)


def test_same_seed_same_bytes(dataset: CocoFolder, tmp_path: Path) -> None:
    longer = contents(synthesize(tmp_path / "longer", images=4, seed=3, textures="generated"))
    shorter = contents(synthesize(tmp_path / "shorter", images=3, seed=3, textures="generated"))
    other = contents(synthesize(tmp_path / "other", images=3, seed=4, textures="generated"))
    first = contents(dataset.root)
    for name, data in shorter.items():
        if name.endswith(".png"):
            assert data == longer[name] == first[name]
            assert data != other[name]
    again = contents(synthesize(tmp_path / "again", images=3, seed=3, textures="generated"))
    assert again == shorter


def test_size_and_number_of_objects(tmp_path: Path) -> None:
    synthesize(tmp_path / "a", images=2, seed=0, size=(64, 100), objects=(1, 1), textures="generated")
    for photo in CocoFolder(tmp_path / "a").photos:
        assert (photo.height, photo.width, len(photo.instances)) == (64, 100, 1)


@pytest.mark.parametrize(
    "arguments",
    [
        {"images": 0},
        {"seed": -1},
        {"size": (63, 100)},
        {"size": (100, 10_000)},
        {"objects": (0, 3)},
        {"objects": (4, 3)},
        {"textures": "wool"},
    ],
)
def test_arguments_out_of_range(tmp_path: Path, arguments: dict[str, object]) -> None:
    with pytest.raises(DataError, match=f"{next(iter(arguments))} must be"):
        synthesize(tmp_path / "a", **({"images": 1, "seed": 0} | arguments))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_existing_folders(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    synthesize(tmp_path / "empty", images=1, seed=0, textures="generated")
    with pytest.raises(DataError, match="empty: exists already"):
        synthesize(tmp_path / "empty", images=1, seed=0)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="file: exists already"):
        synthesize(tmp_path / "file", images=1, seed=0)
    with pytest.raises(DataError, match="cannot be written"):
        synthesize(tmp_path / "file" / "below", images=1, seed=0)
    assert (tmp_path / "file").read_text() == "mine"


def test_nothing_is_left_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "_render", fail)
    with pytest.raises(KeyboardInterrupt):
        synthesize(tmp_path / "a", images=1, seed=0, textures="generated")
    assert not list(tmp_path.iterdir())


def test_photo_textures(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    assert load_texture_photos("auto")
    drawn = contents(synthesize(tmp_path / "drawn", images=2, seed=0, textures="generated"))
    cut = contents(synthesize(tmp_path / "cut", images=2, seed=0, textures="photo"))
    auto = contents(synthesize(tmp_path / "auto", images=2, seed=0))
    assert auto == cut != drawn
    assert json.loads(cut["instances.json"])["info"]["textures"] == "photo"


def test_photos_kept_for_demonstration_are_never_used() -> None:
    assert not any("coffee" in name or "chelsea" in name for name in textures._PHOTOS)


def test_without_scikit_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    assert load_texture_photos("auto") == []
    with pytest.raises(DataError, match="scikit-image"):
        load_texture_photos("photo")


def test_random_shapes_fill_their_square() -> None:
    rng = np.random.default_rng(0)
    for side in (21, 48, 129):
        shape = random_shape(rng, side)
        assert (shape.shape, shape.dtype) == ((side, side), bool)
        assert side - 2 <= max(shape.any(0).sum(), shape.any(1).sum()) <= side
        assert 0.05 < shape.mean() < 0.95


@pytest.mark.parametrize("photos", [[], [Image.new("RGB", (30, 40), (200, 100, 50))]])
def test_random_textures_of_any_size(photos: list[Image.Image]) -> None:
    rng = np.random.default_rng(0)
    for height, width in ((1, 1), (7, 90), (90, 7), (64, 64)):
        for _ in range(8):
            texture = random_texture(rng, height, width, photos)
            assert (texture.shape, texture.dtype) == ((height, width, 3), np.float32)
            assert np.isfinite(texture).all()


def test_photo_textures_larger_than_their_photo() -> None:
    """width / (width / 49) is more than 49 for some widths: rounding must not lead out of the photo."""
    widths = [width for width in range(90, 400) if width / (width / 49) > 49]
    assert widths
    for width in widths:
        texture = textures._photo_texture(np.random.default_rng(0), 20, width, [Image.new("RGB", (49, 300))])
        assert texture.shape == (20, width, 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_its_look(family: str) -> None:
    """Solidity (share of the bounding circle) tells thin bars and spiky stars from round shapes."""
    rng = np.random.default_rng(0)
    shares = [(draw_shape(rng, family, 60) >= 0.5).sum() / (np.pi * 30**2) for _ in range(40)]
    low, high = {"bar": (0.1, 0.5), "star": (0.2, 0.65)}.get(family, (0.4, 1.1))
    assert low < np.mean(shares) < high

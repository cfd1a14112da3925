"""What is written for other programs, read back by them, pixel by pixel."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import supervision as sv
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from sharpmask import Proposals, packages
from sharpmask.data.photos import find_photos
from sharpmask.errors import DataError
from sharpmask.formats.polygons import drawn, joined, rings, runs

SIZE = 40, 57


def blobs(seed: int) -> np.ndarray:
    """A mask of several parts with holes, some of a single pixel or a line."""
    rng = np.random.default_rng(seed)
    rough = Image.fromarray(rng.integers(0, 256, (9, 12), np.uint8)).resize(SIZE[::-1], Image.Resampling.BICUBIC)
    return np.asarray(rough) > (90, 128, 170)[seed % 3]


def hard_masks() -> list[np.ndarray]:
    lines = np.zeros(SIZE, bool)
    lines[5, 10:30] = lines[20:35, 3] = lines[38, 50] = True
    lines[[12, 13, 14], [40, 41, 42]] = True
    nested = np.zeros(SIZE, bool)
    nested[2:38, 5:50] = True
    nested[6:34, 9:46] = False
    nested[10:30, 13:40] = True
    nested[14:26, 20:30] = False
    nested[20, 25] = True
    checked = np.indices(SIZE).sum(0) % 2 == 0
    checked[15:] = checked[:, 15:] = False
    noise = np.random.default_rng(5).random(SIZE) > 0.5
    return [np.ones(SIZE, bool), lines, nested, checked, noise, *map(blobs, range(5))]


@pytest.fixture(scope="module")
def proposals() -> Proposals:
    masks = [mask for mask in hard_masks() if len(runs(mask)) < 500]  # the others take seconds
    rng = np.random.default_rng(0)
    rles = [dict(coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))) for mask in masks]
    count = len(masks)
    return Proposals(
        rng.integers(0, 256, (*SIZE, 3), np.uint8),
        rles,
        np.linspace(0.9, 0.1, count, dtype=np.float32),
        stability=rng.random(count).astype(np.float32),
        windows=rng.random((count, 4)),
    )


@pytest.fixture(scope="module")
def nothing() -> Proposals:
    return Proposals(np.zeros((*SIZE, 3), np.uint8), [], np.zeros(0, np.float32))


@pytest.mark.parametrize("mask", hard_masks())
def test_rings_draw_the_mask(mask: np.ndarray) -> None:
    found = rings(mask, "test")
    assert all(len(ring) >= 3 and ring.min() >= 0 for ring in found)
    assert np.array_equal(drawn(found, SIZE, "test"), mask)
    by_pillow = Image.new("1", SIZE[::-1])
    for ring in found:  # as labelme draws
        ImageDraw.Draw(by_pillow).polygon([*map(tuple, ring.tolist())], outline=1, fill=1)
    assert not (np.asarray(by_pillow) & ~mask).any()
    assert (mask & ~np.asarray(by_pillow)).sum() <= 2, "Pillow leaves out single pixels at lines to holes"
    assert rings(np.zeros(SIZE, bool), "test") == []
    assert np.array_equal(drawn(runs(mask), SIZE, "test"), mask)


@pytest.mark.parametrize("mask", hard_masks())
def test_joined_rings_add_lines_only(mask: np.ndarray) -> None:
    parts = rings(mask, "test")
    found = drawn([joined(parts)], SIZE, "test")
    assert not (mask & ~found).any(), "nothing is lost"
    if len(parts) == 1:
        assert np.array_equal(found, mask)
    # A line between two parts has no more pixels than its longer side.
    ends = itertools.pairwise(parts)
    assert (found & ~mask).sum() <= sum(np.abs(a[:, None] - b).max(2).min() for a, b in ends) + 4 * len(parts)


def test_supervision_gets_masks_boxes_and_fields(proposals: Proposals, nothing: Proposals) -> None:
    found = proposals.to_supervision()
    np.testing.assert_array_equal(found.mask, proposals.masks())
    np.testing.assert_array_equal(found.xyxy, sv.mask_to_xyxy(proposals.masks(), coordinate_convention="exclusive"))
    np.testing.assert_array_equal(found.confidence, proposals.scores)
    np.testing.assert_array_equal(found.data["area"], proposals.masks().sum((1, 2)))
    few = found[(found.data["area"] > 50) & (found.data["stability"] > 0.3)]
    assert 0 < len(few) < len(found) and few.data["window"].shape == (len(few), 4)
    assert len(nothing.to_supervision()) == 0


def test_labelme_is_read_back_by_supervision(proposals: Proposals, tmp_path: Path) -> None:
    Image.fromarray(proposals.image).save(tmp_path / "photo.png")
    (tmp_path / "photo.json").write_text(json.dumps(proposals.to_labelme("photo.png")))
    dataset = sv.DetectionDataset.from_labelme(str(tmp_path), str(tmp_path))
    ((_, _, found),) = list(dataset)
    assert dataset.classes == ["object"]
    np.testing.assert_array_equal(found.mask, proposals.masks())
    document = proposals.to_labelme(Path("a") / "b.jpg")
    assert document["imagePath"] == "a/b.jpg" and (document["imageHeight"], document["imageWidth"]) == SIZE
    assert document["shapes"][0]["description"] == "score 0.9000"


def test_yolo_is_read_back_by_supervision(proposals: Proposals, nothing: Proposals, tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.fromarray(proposals.image).save(tmp_path / "images" / "photo.png")
    (tmp_path / "labels" / "photo.txt").write_text(proposals.to_yolo())
    (tmp_path / "data.yaml").write_text("names: [object]\n")
    places = (str(tmp_path / name) for name in ("images", "labels", "data.yaml"))
    ((_, _, found),) = list(sv.DetectionDataset.from_yolo(*places, force_masks=True))
    assert len(found) == len(proposals), "an object is a line"
    whole = 0
    for mask, read in zip(proposals.iter_masks(), found.mask, strict=True):
        parts = rings(mask, "test")
        np.testing.assert_array_equal(read, drawn([joined(parts)], SIZE, "test"))
        whole += len(parts) == 1 and np.array_equal(read, mask)
    assert whole >= 1
    # Readers that cut coordinates off instead of rounding them get the same pixels.
    for line, mask in zip(proposals.to_yolo().splitlines(), found.mask, strict=True):
        points = np.array(line.split()[1:], np.float32).reshape(-1, 2) * np.float32(SIZE[::-1])
        assert np.array_equal(sv.polygon_to_mask(points.astype(int), SIZE[::-1]) > 0, mask)
    assert nothing.to_yolo() == ""


@pytest.mark.parametrize("count", [17, 257])
def test_png_is_read_back_by_pillow(proposals: Proposals, tmp_path: Path, count: int) -> None:
    rles = (proposals.rles * 50)[:count]
    many = Proposals(proposals.photo, rles, np.linspace(0.9, 0.1, count, dtype=np.float32))
    many.to_png(tmp_path / "out")
    index = np.array(Image.open(tmp_path / "out" / "index.png"))
    assert index.dtype == (np.uint8 if count < 256 else np.uint16)
    expected = np.zeros(SIZE, int)
    for number in range(count, 0, -1):
        mask = np.array(Image.open(tmp_path / "out" / f"mask_{number:05d}.png")) > 0
        assert np.array_equal(mask, coco_mask.decode(rles[number - 1]))
        expected[mask] = number
    np.testing.assert_array_equal(index, expected)
    # Fewer masks leave none of the old ones, and no photo is taken for them.
    (tmp_path / "out" / "mask_own.png").write_bytes(b"")
    Proposals(proposals.photo, rles[:2], many.scores[:2]).to_png(tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["index.png", "mask_00001.png", "mask_00002.png", "mask_own.png"]
    with pytest.raises(DataError, match="no image file"):
        (tmp_path / "out" / "mask_own.png").unlink()
        find_photos([tmp_path / "out"])


def test_index_shows_the_best(tmp_path: Path) -> None:
    masks = np.zeros((2, 4, 5), bool)
    masks[0, :2] = masks[1, 1:3] = True
    rles = [dict(coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))) for mask in masks]
    Proposals(np.zeros((4, 5, 3), np.uint8), rles, np.array([0.9, 0.5], np.float32)).to_png(tmp_path)
    assert np.array(Image.open(tmp_path / "index.png")).tolist() == [[1] * 5, [1] * 5, [2] * 5, [0] * 5]


def test_cutouts_are_the_photo_inside_the_mask(proposals: Proposals) -> None:
    found = proposals.cutouts()
    assert len(found) == len(proposals)
    for cut, mask, (x, y, w, h) in zip(found, proposals.iter_masks(), proposals.boxes.astype(int), strict=True):
        assert cut.shape == (h, w, 4) and cut.dtype == np.uint8
        assert np.array_equal(cut[..., 3] == 255, mask[y : y + h, x : x + w])
        assert np.array_equal(cut[..., :3], proposals.image[y : y + h, x : x + w])
        assert Image.fromarray(cut).mode == "RGBA"


def test_coco_entries_say_what_filters_need(proposals: Proposals) -> None:
    for entry, mask in zip(proposals.to_coco(3), proposals.iter_masks(), strict=True):
        assert entry["area"] == mask.sum() and 0 <= entry["stability"] <= 1 and len(entry["window"]) == 4
        assert json.loads(json.dumps(entry)) == entry
    plain = Proposals(proposals.photo, proposals.rles[:1], proposals.scores[:1])
    assert not {"stability", "window"} & set(plain.to_coco(3)[0])


@pytest.mark.parametrize("method", ["to_supervision", "to_yolo"])
def test_a_missing_package_is_named(proposals: Proposals, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(
        DataError, match=r"needs the package supervision, which is not installed: pip install 'sharpmask"
    ):
        getattr(proposals, method)()

"""Dense training tiles: labels by geometry, masks by pixels, batches by number."""

import json
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from sharpmask.data import pasting, tiles
from sharpmask.data.augment import resample
from sharpmask.data.coco import CocoFolder
from sharpmask.data.labels import Placed, Tile
from sharpmask.data.tiles import TileBatch, TileBatches, TileConfig
from sharpmask.errors import DataError

WINDOW, SIDE = 48, 128
CONFIG = TileConfig(side=SIDE, tiles=2)
OBJECT = 128 / 224 * WINDOW
"""Longest side of an object that fits the window exactly."""


def write_folder(root: Path, photos: list[np.ndarray], entries: list[dict[str, Any]]) -> Path:
    """A COCO-format folder of ``photos``, with ids from 1 on; every entry needs image_id and segmentation."""
    (root / "images").mkdir(parents=True)
    images = []
    for i, photo in enumerate(photos, 1):
        Image.fromarray(photo).save(root / "images" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": photo.shape[0], "width": photo.shape[1]})
    annotations = [{"id": i, "category_id": 1, "iscrowd": 0, **entry} for i, entry in enumerate(entries, 1)]
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (root / "instances.json").write_text(json.dumps(document))
    return root


def box_rle(height: int, width: int, x: int, y: int, w: int, h: int) -> dict[str, Any]:
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    rle = coco_mask.encode(mask)
    return {"size": [height, width], "counts": rle["counts"].decode()}


@pytest.fixture(scope="module")
def folder(synth: Path) -> CocoFolder:
    return CocoFolder(synth)


class Spied(TileBatches):
    """Keeps what every tile shows, as it was before labelling."""

    seen: list[list[Placed]]

    def _label(self, rng: np.random.Generator, image: np.ndarray, placed: list[Placed], complete: bool) -> Tile:
        self.__dict__.setdefault("seen", []).append(placed)
        return super()._label(rng, image, placed, complete)


def window_geometry(batch: TileBatch) -> list[tuple[int, float, float]]:
    """Tile, centre y and centre x of every window, in tile pixels."""
    w = batch.windows
    return [
        (t, 16 * r + WINDOW / 2, 16 * c + WINDOW / 2)
        for t, r, c in zip(w.image.tolist(), w.row.tolist(), w.col.tolist(), strict=True)
    ]


def extent(mask: np.ndarray) -> tuple[float, float, float]:
    """Centre y, centre x and longest side of the box around a mask's pixels."""
    y, x = np.nonzero(mask)
    top, bottom, left, right = y.min(), y.max() + 1, x.min(), x.max() + 1
    return (top + bottom) / 2, (left + right) / 2, max(bottom - top, right - left)


def misfit(window: tuple[int, float, float], y: float, x: float, longest: float) -> tuple[float, float]:
    """Distance in pixels and size in octaves of a window from the one that fits an object."""
    return float(np.hypot(window[1] - y, window[2] - x)), float(abs(np.log2(longest / OBJECT)))


def test_labels_hold_by_geometry(folder: CocoFolder) -> None:
    batches = Spied(folder, CONFIG, window=WINDOW, seed=1)
    positives = negatives = hard = 0
    for step in range(40):
        batches.seen = []
        batch = batches[step]
        windows = window_geometry(batch)
        assert len(set(windows)) == len(windows), "a window occurs twice"
        for i, window in enumerate(windows):
            placed = batches.seen[window[0]]
            y0, x0 = int(window[1] - WINDOW / 2), int(window[2] - WINDOW / 2)
            assert 0 <= y0 <= SIDE - WINDOW and 0 <= x0 <= SIDE - WINDOW
            if i < len(batch.masks):
                fitting = []
                for p in placed:
                    if not p.usable:
                        continue
                    distance, octaves = misfit(window, *extent(p.mask))
                    if distance <= 11.5 and octaves <= 0.45:
                        fitting.append((distance / 11.5 + octaves / 0.45, p))
                assert fitting, f"step {step}: positive {i} fits no object"
                best = min(fitting, key=lambda pair: pair[0])[1]
                expected = best.mask[y0 : y0 + WINDOW, x0 : x0 + WINDOW]
                assert np.array_equal(batch.masks[i].numpy(), expected)
                positives += 1
            else:
                off = [misfit(window, *(extent(p.mask) if p.usable else (p.y, p.x, max(p.longest, 1)))) for p in placed]
                assert all(distance > 20 or octaves > 0.8 for distance, octaves in off)
                hard += any(distance < 60 and octaves < 2 for distance, octaves in off)
                negatives += 1
    assert positives > 40 and negatives > 300 and hard > 100


def test_counts_stay_within_their_limits(folder: CocoFolder) -> None:
    config = replace(CONFIG, tiles=3, positives=1, negatives=4)
    for step in range(10):
        batch = TileBatches(folder, config, window=WINDOW)[step]
        positives = np.bincount(batch.windows.image[: len(batch.masks)], minlength=3)
        negatives = np.bincount(batch.windows.image[len(batch.masks) :], minlength=3)
        assert positives.max(initial=0) <= 1 and negatives.max(initial=0) <= 4


def test_batch_shapes_and_dtypes(folder: CocoFolder) -> None:
    batch = TileBatches(folder, CONFIG, window=WINDOW)[0]
    assert batch.image.shape == (2, 3, SIDE, SIDE) and batch.image.dtype == torch.uint8
    assert batch.masks.shape[1:] == (WINDOW, WINDOW) and batch.masks.dtype == torch.uint8
    assert set(batch.masks.unique().tolist()) <= {0, 1}
    assert batch.windows.row.dtype == batch.windows.image.dtype == torch.int64
    assert len(batch.masks) < len(batch.windows.row)


def same(a: TileBatch, b: TileBatch) -> bool:
    pairs = zip([a.image, *a.windows, a.masks], [b.image, *b.windows, b.masks], strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_a_tile_depends_on_its_number_and_the_seed_alone(synth: Path) -> None:
    def batches(seed: int, size: int) -> TileBatches:
        return TileBatches(CocoFolder(synth), replace(CONFIG, tiles=size), window=WINDOW, seed=seed)

    used = batches(3, 2)
    used[0], used[9]
    first = used[5]
    assert same(first, batches(3, 2)[5])
    for other in (batches(4, 2)[5], batches(3, 2)[6], batches(5, 2)[3]):
        assert not same(first, other)
    # Batches of one size are those of another, cut elsewhere.
    assert torch.equal(torch.cat([used[k].image for k in (3, 4, 5)]), batches(3, 6)[1].image)


def paint_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the photo the colour 10 and the pasted objects 20, 30, ... instead of random colours."""
    number = count(1)

    def paint(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
        return np.full_like(image, 10 * next(number))

    for module in (tiles, pasting):
        monkeypatch.setattr(module, "jitter_colours", paint)


def core(mask: np.ndarray) -> np.ndarray:
    """The mask without the two outermost pixels, which are blended with what lies beneath."""
    return np.all([np.roll(mask, shift, axis) for shift in (-2, 2) for axis in (0, 1)], axis=0) & mask


def test_masks_are_the_pixels_of_the_pasted_objects(folder: CocoFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, tiles=1, blurred=0.0, pasted=3)
    compared = 0
    for step in range(20):
        paint_by_number(monkeypatch)
        batches = Spied(folder, config, window=WINDOW, seed=2)
        batch = batches[step]
        image = batch.image[0, 0].numpy().astype(int)
        for p in batches.seen[0]:
            inner = core(p.mask)
            # The photo's own objects have its colour.
            if inner.sum() < 60 or np.median(image[inner]) < 15:
                continue
            colour = int(np.median(image[inner]))
            assert np.mean(np.abs(image[inner] - colour) <= 2) > 0.9
            # Elsewhere the colour comes from blending outlines only.
            assert ((image == colour) & ~p.mask).sum() < 0.1 * p.mask.sum() + 10
            compared += 1
        together = np.zeros(image.shape, int)
        for p in batches.seen[0]:
            together += p.mask
        assert together.max() <= 1, "two objects claim a pixel"
    assert compared >= 20


def test_a_photo_s_own_object_keeps_its_place_in_the_tile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "jitter_colours", lambda rng, image: image)
    photo = np.full((150, 200, 3), 40, np.uint8)
    photo[50:90, 60:120] = 220
    entry = {"image_id": 1, "segmentation": box_rle(150, 200, 60, 50, 60, 40)}
    folder = CocoFolder(write_folder(tmp_path / "one", [photo], [entry]))
    batches = Spied(folder, replace(CONFIG, pasted=0, blurred=0.0, anchored=1.0), window=WINDOW)
    positives = 0
    for step in range(10):
        batches.seen = []
        batch = batches[step]
        positives += len(batch.masks)
        for image, placed in zip(batch.image[:, 0].numpy(), batches.seen, strict=True):
            assert len(placed) == 1
            # Both are resampled from the same corners, so only pixels on the outline may differ.
            assert np.mean((image > 130) != placed[0].mask) < 0.01
            assert placed[0].mask.any()
        for window, mask in zip(window_geometry(batch), batch.masks, strict=False):
            y, x = int(window[1] - WINDOW / 2), int(window[2] - WINDOW / 2)
            bright = batch.image[window[0], 0, y : y + WINDOW, x : x + WINDOW].numpy() > 130
            assert np.mean(bright != mask.numpy().astype(bool)) < 0.02
    assert positives >= 10


def test_zoomed_tiles_show_the_largest_object_at_two_to_three_times_its_size(tmp_path: Path) -> None:
    photo = np.full((300, 300, 3), 40, np.uint8)
    boxes = [(10, 10, 30, 30), (100, 60, 100, 150), (0, 250, 300, 50)]
    entries: list[dict[str, Any]] = [{"image_id": 1, "segmentation": box_rle(300, 300, *box)} for box in boxes]
    entries[2]["iscrowd"] = 1
    folder = CocoFolder(write_folder(tmp_path / "one", [photo], entries))
    sides = {}
    for zoomed in (0.0, 1.0):
        config = replace(CONFIG, pasted=0, anchored=1.0 - zoomed, zoomed=zoomed)
        batches = Spied(folder, config, window=WINDOW)
        [batches[step] for step in range(10)]
        largest = [max((p.longest for p in placed if not p.crowd), default=0) / OBJECT for placed in batches.seen]
        sides[zoomed] = min(largest), max(largest)
    assert 2.0 <= sides[1.0][0] < sides[1.0][1] < 3.04
    assert sides[0.0][0] < 1.5
    with pytest.raises(DataError, match=r"anchored and zoomed must be shares .*, got 0\.5 and 0\.6"):
        replace(CONFIG, zoomed=0.6)


def test_crowds_are_neither_positive_nor_negative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "jitter_colours", lambda rng, image: image)
    photo = np.full((96, 96, 3), 90, np.uint8)
    photo[34:62, 12:40] = 250
    crowd = {"image_id": 1, "segmentation": box_rle(96, 96, 12, 34, 28, 28), "iscrowd": 1}
    tiny = {"image_id": 1, "segmentation": box_rle(96, 96, 90, 90, 2, 2)}
    with pytest.raises(DataError, match="no photo with an object to train on"):
        TileBatches(CocoFolder(write_folder(tmp_path / "alone", [photo], [crowd])), CONFIG, window=WINDOW)
    folder = CocoFolder(write_folder(tmp_path / "crowd", [photo], [crowd, tiny]))
    batches = TileBatches(folder, replace(CONFIG, pasted=0, blurred=0.0, anchored=1.0, negatives=100), window=WINDOW)
    whole = 0
    for step in range(20):
        batch = batches[step]
        assert len(batch.masks) == 0
        for tile, image in enumerate(batch.image[:, 0].numpy()):
            bright = image > 200
            if not bright.any() or bright[0].any() or bright[-1].any() or bright[:, 0].any() or bright[:, -1].any():
                continue
            place = extent(bright)
            for window in window_geometry(batch):
                if window[0] == tile:
                    distance, octaves = misfit(window, *place)
                    assert distance > 19 or octaves > 0.7, "a window on the crowd is a negative"
            whole += 1
    assert whole >= 10


def test_a_crowd_is_never_cut_out(tmp_path: Path) -> None:
    photo = np.full((96, 96, 3), 90, np.uint8)
    crowd = {"image_id": 1, "segmentation": box_rle(96, 96, 20, 20, 40, 40), "iscrowd": 1}
    tiny = {"image_id": 1, "segmentation": box_rle(96, 96, 90, 90, 2, 2)}
    batches = TileBatches(CocoFolder(write_folder(tmp_path / "c", [photo], [crowd, tiny])), CONFIG, window=WINDOW)
    _, alpha = batches.paster.cutout(np.random.default_rng(0))
    assert alpha.shape != (40, 40), "came the crowd's box instead of a made-up shape"


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (30, 20), (127, 129), (400, 50)])
def test_photos_of_any_size(tmp_path: Path, size: tuple[int, int]) -> None:
    height, width = size
    photo = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    entry = {"image_id": 1, "segmentation": box_rle(height, width, 0, 0, max(1, width // 2), max(1, height // 2))}
    folder = CocoFolder(write_folder(tmp_path / "odd", [photo], [entry]))
    batches = TileBatches(folder, CONFIG, window=WINDOW)
    for step in range(3):
        batch = batches[step]
        assert batch.image.shape == (2, 3, SIDE, SIDE)
        assert len(batch.windows.row) >= len(batch.masks)


def test_a_small_photo_leaves_grey_around_it(tmp_path: Path) -> None:
    photo = np.full((20, 20, 3), 200, np.uint8)
    entry = {"image_id": 1, "segmentation": box_rle(20, 20, 5, 5, 10, 10)}
    folder = CocoFolder(write_folder(tmp_path / "small", [photo], [entry]))
    config = replace(CONFIG, pasted=0, blurred=0.0, tiles=1)
    image = TileBatches(folder, config, window=WINDOW)[0].image[0, 0]
    assert (image == 128).float().mean() > 0.5
    assert (image != 128).any()


def test_tiles_need_objects_and_a_side_that_fits(synth: Path, tmp_path: Path) -> None:
    empty = CocoFolder(write_folder(tmp_path / "empty", [np.zeros((64, 64, 3), np.uint8)], []))
    with pytest.raises(DataError, match=r"instances\.json: no photo with an object"):
        TileBatches(empty, CONFIG, window=WINDOW)
    with pytest.raises(DataError, match="side must be at least the window, 48, got 32"):
        TileBatches(CocoFolder(synth), replace(CONFIG, side=32), window=WINDOW)


def damaged_folder(root: Path, good: int) -> Path:
    """Photo 1 has a header and no pixels; ``good`` whole ones follow."""
    photos = [np.random.default_rng(i).integers(0, 256, (80, 80, 3), np.uint8) for i in range(good + 1)]
    entries = [{"image_id": i, "segmentation": box_rle(80, 80, 20, 20, 30, 30)} for i in range(1, good + 2)]
    write_folder(root, photos, entries)
    broken = root / "images" / "1.png"
    broken.write_bytes(broken.read_bytes()[:600])
    return root


def test_a_damaged_photo_stops_or_is_left_out(tmp_path: Path) -> None:
    root = damaged_folder(tmp_path / "damaged", good=1)
    with pytest.raises(DataError, match=r"1\.png"):
        [TileBatches(CocoFolder(root), CONFIG, window=WINDOW)[step] for step in range(20)]
    folder = CocoFolder(root, skip_bad=True)
    batches = TileBatches(folder, CONFIG, window=WINDOW)
    for step in range(5):
        assert batches[step].image.shape[0] == 2
    assert len(folder.skipped) == 1 and "1.png" in folder.skipped[0]
    hopeless = CocoFolder(damaged_folder(tmp_path / "hopeless", good=0), skip_bad=True)
    with pytest.raises(DataError, match="no tile in 100 tries"):
        TileBatches(hopeless, CONFIG, window=WINDOW)[0]


def test_resample_places_a_layer_at_its_scale() -> None:
    layer = np.arange(40, dtype=np.uint8).repeat(10).reshape(40, 10)
    out, (rows, cols) = resample(layer, (-6.0, 10.0), 2.0, 32, 7)
    assert (rows, cols) == (slice(0, 32), slice(6, 26))
    # Row r of the result shows the layer at (r + 10 + 1/2) / 2 - 1/2.
    expected = (np.arange(32) + 10.5) / 2 - 0.5
    assert np.abs(out[:, 10] - expected).max() <= 0.51
    assert (out[:, :6] == 7).all() and (out[:, 26:] == 7).all()
    nothing, region = resample(layer, (500.0, 0.0), 1.0, 32, 7)
    assert (nothing == 7).all() and region[1] == slice(0, 0)


def test_objects_that_can_never_be_positives_are_told(tmp_path: Path) -> None:
    """Pasted shapes alone would teach."""
    photo = np.zeros((64, 64, 3), np.uint8)

    def folder(name: str, height: int, width: int) -> CocoFolder:
        entry = {"image_id": 1, "segmentation": box_rle(64, 64, 10, 10, width, height)}
        return CocoFolder(write_folder(tmp_path / name, [photo], [entry]))

    tiny = folder("tiny", 4, 4)
    message = r"instances\.json: of 1 object, none can become a positive window: .* the longest side is 4 pixels"
    with pytest.raises(DataError, match=message):
        TileBatches(tiny, CONFIG, window=WINDOW).check_objects()
    TileBatches(tiny, replace(CONFIG, positives=0), window=WINDOW).check_objects()  # the score alone
    TileBatches(tiny, replace(CONFIG, max_enlargement=6.0), window=WINDOW).check_objects()
    with pytest.raises(DataError, match="of 1 object, none can"):
        TileBatches(folder("sliver", 1, 40), CONFIG, window=WINDOW).check_objects()
    TileBatches(folder("fine", 20, 20), CONFIG, window=WINDOW).check_objects()

"""Photos of which not every object is annotated: they give masks and positives, and no negatives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sharpmask.data import pasting, tiles
from sharpmask.data.coco import CocoFolder
from sharpmask.data.crops import Rule
from sharpmask.data.mixture import Mixture
from sharpmask.data.sampling import PatchSampler, ScoreSample
from sharpmask.data.tiles import TileBatches, TileConfig
from sharpmask.errors import DataError

from .folders import squares

WINDOW, SIDE = 48, 128
CANONICAL = 128 / 224 * WINDOW
CONFIG = TileConfig(side=SIDE, tiles=4, pasted=0, blurred=0.0)
BLUE = (0, 0, 255)


def negatives(batch: tiles.TileBatch) -> np.ndarray:
    """The number of negative windows on each tile."""
    return np.bincount(batch.windows.image[len(batch.masks) :], minlength=len(batch.image))


def test_the_file_or_the_caller_says_which_photos_are_partial(tmp_path: Path) -> None:
    root = squares(tmp_path / "a", {}, {"complete": False}, {"complete": True})
    folder = CocoFolder(root)
    assert [photo.complete for photo in folder.photos] == [True, False, True]
    note = "partially annotated photos, which give no negatives: 1 of 3; first: image 2"
    assert any(note in line for line in folder.notes)
    assert [image["complete"] for image in folder.ground_truth()["images"]] == [True, False, True]
    assert not any(photo.complete for photo in CocoFolder(root, partial=True).photos)
    says = CocoFolder(squares(tmp_path / "b", {}, {"complete": True}, info={"complete": False}))
    assert not any(photo.complete for photo in says.photos)
    assert all(photo.complete for photo in CocoFolder(squares(tmp_path / "c", {}, info={"year": 2020})).photos)


def test_other_words_than_true_and_false_are_refused(tmp_path: Path) -> None:
    root = squares(tmp_path / "a", {}, {"complete": "no"})
    with pytest.raises(DataError, match=r"instances\.json: image 2: complete must be true or false, got 'no'"):
        CocoFolder(root)
    assert len(CocoFolder(root, skip_bad=True).photos) == 1
    with pytest.raises(DataError, match=r"instances\.json: info: complete must be true or false, got 0"):
        CocoFolder(squares(tmp_path / "b", {}, info={"complete": 0}))


def test_sources_name_where_photos_are_from(tmp_path: Path) -> None:
    written = {
        "github:owner/repo@123abc:train/1.jpg": "github:owner/repo",
        "https://photos.example/2020/7.jpg": "https://photos.example/2020",
        "archive/7.jpg": "archive",
        "my camera": "my camera",
    }
    photos = [*({"source": text} for text in written), {"source": 7}, {}]
    folder = CocoFolder(squares(tmp_path / "a", *photos))
    assert [photo.source for photo in folder.photos] == [*written.values(), "", ""]
    assert folder.ground_truth()["images"][0]["source"] == "github:owner/repo"


def test_a_partial_tile_has_positives_and_no_negatives(tmp_path: Path) -> None:
    folder = CocoFolder(squares(tmp_path / "a", {}, {}), partial=True)
    batches = TileBatches(folder, replace(CONFIG, pasted=2), window=WINDOW)
    positives = 0
    for step in range(10):
        batch = batches[step]
        positives += len(batch.masks)
        assert negatives(batch).sum() == 0
    assert positives > 20


def test_a_step_has_a_complete_tile_if_there_are_complete_photos(tmp_path: Path) -> None:
    """Steps of positives alone would raise all scores."""
    partial = CocoFolder(squares(tmp_path / "a", *[{}] * 9, colour=20), partial=True)
    complete = CocoFolder(squares(tmp_path / "b", {}, colour=90))
    batches = TileBatches(Mixture([partial, complete], [5, 1]), CONFIG, window=WINDOW)
    seen = []
    for step in range(30):
        count = negatives(batches[step])
        assert count.max() > 0
        seen.append(int((count > 0).sum()))
    # Of four tiles 4/6 are complete; of the steps without, (5/6)^4 = 48 %, one more becomes so.
    assert 0.9 < np.mean(seen) < 1.5
    three = TileBatches(Mixture([partial, complete], [5, 1]), replace(CONFIG, complete_tiles=3), window=WINDOW)
    assert all((negatives(three[step]) > 0).sum() >= 3 for step in range(5))
    alone = TileBatches(Mixture([partial, complete], [5, 1]), replace(CONFIG, tiles=1), window=WINDOW)
    assert 1 <= sum(negatives(alone[step]).sum() > 0 for step in range(40)) <= 15


def test_parts_of_objects_are_negatives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on partial tiles: the middle of such a window shows the object, of which it is a half to a third."""
    for module in (tiles, pasting):
        monkeypatch.setattr(module, "jitter_colours", lambda rng, image: image)
    root = squares(tmp_path / "a", {}, {})
    config = replace(CONFIG, part_negatives=0.5, negatives=10)
    found = {}
    for name, partial in (("partial", True), ("complete", False)):
        batches = TileBatches(CocoFolder(root, partial=partial), config, window=WINDOW)
        batches.check_objects()
        parts, most = 0, 0
        for step in range(25):
            batch = batches[step]
            most = max(most, int(negatives(batch).max()))
            positives = len(batch.masks)
            windows = zip(batch.windows.image, batch.windows.row, batch.windows.col, strict=True)
            for tile, row, col in list(windows)[positives:]:
                red = batch.image[tile, 0].numpy() > 100
                y, x = int(row) * 16 + 10, int(col) * 16 + 10
                longest = max(np.ptp(place) + 1 for place in np.nonzero(red)) if red.any() else 0
                is_part = red[y : y + 27, x : x + 27].mean() > (0.68 if partial else 0.28)
                parts += is_part
                if partial:
                    assert is_part and 1.9 * CANONICAL < longest + 2 < 3.2 * CANONICAL
        found[name] = parts
        assert most <= (5 if partial else 10)
    assert min(found.values()) > 10
    assert TileConfig().part_negatives == 0


def test_only_partial_photos_need_another_source_of_negatives(tmp_path: Path) -> None:
    folder = CocoFolder(squares(tmp_path / "a", {}), partial=True)
    with pytest.raises(DataError, match=r"must hold a completely annotated photo, .*--tiles\.negatives 0"):
        TileBatches(folder, CONFIG, window=WINDOW).check_objects()
    for change in ({"part_negatives": 0.2}, {"negatives": 0}):
        TileBatches(folder, replace(CONFIG, **change), window=WINDOW).check_objects()
    assert PatchSampler(folder, head="mask").sample(0)
    with pytest.raises(DataError, match=r"must hold a completely annotated photo, .*--score-share 0"):
        PatchSampler(folder, head="score")


@pytest.mark.parametrize("rule", ["paper", "released"])
def test_patches_take_negatives_from_complete_photos_alone(tmp_path: Path, rule: Rule) -> None:
    partial = CocoFolder(squares(tmp_path / "a", *[{}] * 3, colour=255), partial=True)
    complete = CocoFolder(squares(tmp_path / "b", {}, colour=100))
    sampler = PatchSampler(Mixture([partial, complete]), head="score", window=64, context=0, rule=rule)
    shades: dict[int, set[int]] = {1: set(), -1: set()}
    for index in range(60):
        sample = sampler.sample(index)
        assert isinstance(sample, ScoreSample)
        green = (sample.image[1] * 255).round().int()
        shades[sample.label] |= set(green[green != 128].flatten().tolist()) & {100, 255}
    assert shades == {1: {100, 255}, -1: {100}}

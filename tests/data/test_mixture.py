"""Several data sets as one: weights, sources and sizes decide what is drawn how often."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from sharpmask.data.coco import CocoFolder, Photo
from sharpmask.data.data_set import data_sets
from sharpmask.data.mixture import Mixture
from sharpmask.data.objects import Instance
from sharpmask.data.pool import Pool
from sharpmask.data.sampling import MaskSample, PatchSampler, ScoreSample
from sharpmask.data.tiles import TileBatches, TileConfig
from sharpmask.errors import DataError

from .folders import background, squares

CONFIG = TileConfig(side=64, tiles=1, pasted=0, blurred=0.0)


def photo(number: int, *sides: int, source: str = "", complete: bool = True) -> Photo:
    """A photo with squares of these sides; a negative one is a crowd."""
    objects = tuple(
        Instance(i, 1, (0.0, 0.0, abs(s), abs(s)), float(s * s), s < 0, 400, 400, b"") for i, s in enumerate(sides)
    )
    return Photo(number, Path(f"{number}.png"), 400, 400, objects, complete=complete, source=source)


def shares(pool: Pool, draws: int = 4000) -> dict[int, float]:
    rng = np.random.default_rng(0)
    counts = Counter(pool.photo(rng).id for _ in range(draws))
    return {key: counts[key] / draws for key in sorted(counts)}


def test_only_a_number_after_the_last_colon_is_a_weight() -> None:
    words = ["a", "b:0.3", "c:2", "d:.5", "host:3/e", "f:x", "g:1:2", "C:\\h", "./i:4/:7"]
    found = data_sets([Path(word) for word in words], [])
    folders = ["a", "b", "c", "d", "host:3/e", "f:x", "g:1", "C:\\h", "./i:4"]
    assert [data.folder for data in found] == [Path(name) for name in folders]
    assert [data.weight for data in found] == [1, 0.3, 2, 0.5, 1, 1, 2, 1, 7]
    assert {data.annotations for data in found} == {None}
    two = data_sets([Path("a:2"), Path("a")], [Path("x.json"), Path("y.json")])
    assert [(d.folder.name, d.annotations.name, d.weight) for d in two if d.annotations] == [
        ("a", "x.json", 2),
        ("a", "y.json", 1),
    ]


def test_weights_and_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for weight in ("0", "-1", "nan", "1e400", ""):
        with pytest.raises(DataError, match=rf"dataset: the weight must be a number above 0 .*, got .*/a:{weight}$"):
            data_sets([tmp_path / f"a:{weight}"], [])
    (tmp_path / "a:-1").mkdir()
    assert [data.weight for data in data_sets([tmp_path / "a:-1", tmp_path / "a:1e-1"], [])] == [1, 0.1]
    with pytest.raises(DataError, match="annotations must be one file for each data set, or none, got 1 for 2"):
        data_sets([Path("a"), Path("b")], [Path("x.json")])


def test_weights_are_shares_of_data_sets_whatever_their_sizes() -> None:
    many, few = [photo(i, 50) for i in range(8)], [photo(i, 50) for i in (8, 9)]
    found = shares(Pool.of([(many, 1.0), (few, 3.0)]))
    assert found[8] + found[9] == pytest.approx(0.75, abs=0.03)
    assert all(found[i] == pytest.approx(0.25 / 8, abs=0.01) for i in range(8))
    pool = Pool.of([(many, 1.0), (few, 3.0)])
    assert pool.share(np.arange(10) > 7) == pytest.approx(0.75)
    assert shares(pool.only(np.isin(np.arange(10), (0, 8)))) == pytest.approx({0: 0.0769, 8: 0.9231}, abs=0.02)


@pytest.mark.parametrize(("balance", "expected"), [(0, 0.8), (1, 0.5), (0.5, 2 / 3)])
def test_sources_may_be_drawn_alike(balance: float, expected: float) -> None:
    photos = [photo(i, 50, source="a" if i < 8 else "b") for i in range(10)]
    found = shares(Pool.of([(photos, 1.0)], balance))
    assert sum(found[i] for i in range(8)) == pytest.approx(expected, abs=0.03)


def test_sizes_may_be_drawn_alike() -> None:
    """Of 20 photos of small objects one has a large one, too; nobody has a medium one, and crowds do not count."""
    pool = Pool([*(photo(i, 10, 12, -90) for i in range(19)), photo(19, 10, 200)])
    rng = np.random.default_rng(0)
    found = Counter(max(pool.an_object(rng, by_size=True)[1].box[2:]) for _ in range(1000))
    assert set(found) == {10, 12, 200} and 400 < found[200] < 600
    plain = Counter(max(pool.an_object(rng, by_size=False)[1].box[2:]) for _ in range(1000))
    assert plain[200] < 60 and plain[90] > 200
    crowds = Pool([photo(0, -50)])
    assert crowds.an_object(rng, by_size=True)[1].crowd


def test_tiles_and_patches_come_from_data_sets_by_weight(tmp_path: Path) -> None:
    a, b = (CocoFolder(squares(tmp_path / name, *[{}] * n, colour=c)) for name, n, c in (("a", 5, 40), ("b", 1, 90)))
    data = Mixture([a, b], [1, 3])
    pool = TileBatches(data, CONFIG, window=48).pool
    assert pool.share(np.array([path.name == "b1.png" for path in pool.photos.values("path")])) == pytest.approx(0.75)
    sampler = PatchSampler(data, head="mask", window=48, context=0)
    shades = Counter()
    for index in range(200):
        sample = sampler.sample(index)
        assert isinstance(sample, MaskSample)
        shades[round(float(sample.image[1].min()) * 255)] += 1
    assert set(shades) == {40, 90} and 130 < shades[90] < 170


def test_background_beside_objects_gives_negatives(tmp_path: Path) -> None:
    """The background is of a brighter green, by which its tiles and patches are known."""
    a = CocoFolder(squares(tmp_path / "a", *[{}] * 4, colour=40))
    b = CocoFolder(background(tmp_path / "b", 3, 200))
    assert Mixture([a, b]).backgrounds == (False, True) and Mixture([b, b]).backgrounds == (False, False)
    data = Mixture([a, b], [3, 1])
    batches = TileBatches(data, replace(CONFIG, tiles=100), window=48)
    batches.check_objects()
    streams = [np.random.default_rng(i) for i in range(2000)]
    assert batches._pools(streams).count(batches._empty) / 2000 == pytest.approx(0.25, abs=0.03)
    tile = batches.tile(np.random.default_rng(0), batches._empty)
    assert len(tile.cells) > 0 and len(tile.masks) == 0, "all windows are negatives"
    pasted = TileBatches(data, replace(CONFIG, pasted=2, side=96), window=48)
    tiles = [pasted.tile(np.random.default_rng(i), pasted._empty) for i in range(20)]
    assert any(len(tile.masks) for tile in tiles), "objects of the other data set are pasted"
    scores = PatchSampler(data, head="score", window=48, context=0)
    greens: dict[int, list[bool]] = {1: [], -1: []}
    for index in range(300):
        sample = scores.sample(index)
        assert isinstance(sample, ScoreSample)
        greens[sample.label].append(abs(float(sample.image[1].max()) * 255 - 200) < 2)
    assert not any(greens[1]) and np.mean(greens[-1]) == pytest.approx(0.25, abs=0.1)
    masks = PatchSampler(data, head="mask", window=48, context=0, rule="released")
    assert all(masks.sample(index).mask.any() for index in range(20))


def test_background_keeps_the_score_of_partial_photos_down(tmp_path: Path) -> None:
    """Of the tiles in a step one shows background, however small its weight, and none needs a complete photo."""
    partial = CocoFolder(squares(tmp_path / "a", {}, {}), partial=True)
    empty = CocoFolder(background(tmp_path / "b", 1, 90))
    batches = TileBatches(Mixture([partial, empty], [1e6, 1]), replace(CONFIG, tiles=4), window=48)
    batches.check_objects()
    for step in range(5):
        streams = [np.random.default_rng([step, i]) for i in range(4)]
        assert [pool is batches._empty for pool in batches._pools(streams)] == [True, False, False, False]


def test_background_that_cannot_teach_is_refused(tmp_path: Path) -> None:
    folder, empty = CocoFolder(squares(tmp_path / "a", {})), CocoFolder(background(tmp_path / "b", 2, 90))
    partial = CocoFolder(tmp_path / "b", partial=True)
    for make in (
        lambda: TileBatches(Mixture([empty, empty]), CONFIG, window=48),
        lambda: TileBatches(Mixture([folder, partial]), CONFIG, window=48),
        lambda: PatchSampler(Mixture([empty]), head="score"),
    ):
        with pytest.raises(DataError, match=r"b/instances\.json: .* object to"):
            make()
    with pytest.raises(
        DataError, match=r"b/instances\.json: .* since rule 'released' takes negatives from photos with"
    ):
        PatchSampler(Mixture([folder, empty]), head="score", rule="released")


def test_one_data_set_is_drawn_as_without_a_mixture(tmp_path: Path) -> None:
    folder = CocoFolder(squares(tmp_path / "a", *[{}] * 4))
    alone, mixed = (
        TileBatches(data, replace(CONFIG, pasted=2), window=48) for data in (folder, Mixture([folder], [7]))
    )
    for step in range(3):
        assert (alone[step].image == mixed[step].image).all()
    assert Mixture([folder]).skipped is folder.skipped


def test_data_sets_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = CocoFolder(squares(tmp_path / "a", {}))
    turned = CocoFolder(tmp_path / "a", exif="turned")
    with pytest.raises(ValueError, match="folders must have the same exif"):
        Mixture([folder, turned])
    for weights in ([1.0], [1.0, 0.0], [1.0, math.nan], [1.0, math.inf]):
        with pytest.raises(ValueError, match="weights must be a finite one above 0 for each of 2 folders"):
            Mixture([folder, folder], weights)
    empty = folder.split(["a1.png"])[0]
    for make in (
        lambda: TileBatches(Mixture([folder, empty]), CONFIG, window=48),
        lambda: PatchSampler(empty, head="mask"),
    ):
        with pytest.raises(DataError, match=r"a/instances\.json: "):
            make()


def test_what_is_left_out_is_told_once() -> None:
    folder = SimpleNamespace(skipped=["one"], cache=SimpleNamespace(exif="stored"))
    data = Mixture([cast(CocoFolder, folder)])
    for line in ("two", "one", "two"):
        data.leave_out(line)
    assert data.skipped == folder.skipped == ["one", "two"]


def test_a_folder_is_split_by_file_names(tmp_path: Path) -> None:
    folder = CocoFolder(squares(tmp_path / "a", {}, {}, {}))
    rest, chosen = folder.split({"a2.png"})
    assert [p.id for p in rest.photos] == [1, 3] and [p.id for p in chosen.photos] == [2]
    assert len(folder.photos) == 3 and rest.skipped is folder.skipped


def test_workers_share_the_memory_of_decoded_photos(tmp_path: Path) -> None:
    folder = CocoFolder(squares(tmp_path / "a", {}))
    before = folder.cache.max_bytes
    Mixture([folder]).share_cache(4)
    assert folder.cache.max_bytes == before // 4

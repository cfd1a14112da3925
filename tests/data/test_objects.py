"""Objects without a usable mask: what is refused, what becomes an ignored region, and what that teaches."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sharpmask.data.annotations import read_shape
from sharpmask.data.coco import CocoFolder
from sharpmask.data.crops import PaperWindows
from sharpmask.data.sampling import PatchSampler
from sharpmask.data.tiles import TileBatches, TileConfig
from sharpmask.errors import DataError

from .folders import HEIGHT, WIDTH, entry, rectangle, write

GOOD = rectangle(5, 8, 20, 12)
NAN = float("nan")


def only(folder: CocoFolder) -> Any:
    (instance,) = folder.photos[0].instances
    return instance


@pytest.mark.parametrize(
    ("polygon", "why"),
    [
        ([30.1, 20.1, 30.4, 20.1, 30.4, 20.3], "they are too thin"),
        ([30, 20, 40, 20, 50, 20], "they are too thin"),
        (rectangle(WIDTH + 1, 5, 9, 9), "they are outside"),
        (rectangle(3, -12, 9, 9), "they are outside"),
    ],
)
def test_masks_that_draw_no_pixel_are_refused(tmp_path: Path, polygon: list[float], why: str) -> None:
    write(tmp_path, entry(1, GOOD), entry(2, polygon), entry(3, GOOD))
    with pytest.raises(
        DataError, match=rf"annotation 2: polygons must set at least one pixel .*, got none: {why} \(sk"
    ):
        CocoFolder(tmp_path)
    folder = CocoFolder(tmp_path, skip_bad=True)
    assert len(folder.skipped) == 1
    assert [i.id for i in folder.photos[0].instances if not i.crowd] == [1, 3]


@pytest.mark.parametrize("polygon", [rectangle(0.1, 0.2, 0.5, 0.6), rectangle(0, 0, 1, 1)])
def test_single_normalised_polygons_are_refused(tmp_path: Path, polygon: list[float]) -> None:
    write(tmp_path, entry(1, GOOD), entry(2, polygon), entry(3, GOOD))
    with pytest.raises(
        DataError, match=r"annotation 2: polygons must be in pixels, got coordinates from 0 to 1 \(norm"
    ):
        CocoFolder(tmp_path)


@pytest.mark.parametrize("skip_bad", [False, True])
@pytest.mark.parametrize("beyond", [0, 0.02])
def test_normalised_polygons_are_named_where_most_are(tmp_path: Path, skip_bad: bool, beyond: float) -> None:
    tiny = [entry(key, rectangle(0.2, 0.3, 0.8 + beyond, 0.5)) for key in (1, 2)]
    write(tmp_path, *tiny, entry(3, GOOD), entry(4, bbox=[1, 2, 30, 40]))
    with pytest.raises(DataError, match=r"coordinates from 0 to 1 \(normalised\) in 2 of 3 annotations; multiply x by"):
        CocoFolder(tmp_path, skip_bad=skip_bad)


def test_lines_that_say_themselves_that_they_have_no_area_are_ignored(tmp_path: Path) -> None:
    line = [26.5, 38.5, 26.5, 38.5, 27.5, 38.5, 27.5, 38.5]
    folder = CocoFolder(
        write(
            tmp_path,
            entry(1, GOOD),
            entry(2, line, area=0.0, bbox=[26.5, 38.5, 1, 0]),
            entry(3, line, bbox=[26.5, 38.5, 1, 0]),
            entry(4, area=0, bbox=[0, 0, 0, 0]),
        )
    )
    assert only(folder).id == 1
    assert folder.skipped == []
    assert folder.notes == [f"{folder.annotation_file}: annotations without an area, ignored: 3; first: annotation 2"]


@pytest.mark.parametrize("empty", [[], [[]], None, {}])
def test_a_box_alone_is_a_crowd(tmp_path: Path, empty: Any) -> None:
    folder = CocoFolder(write(tmp_path, entry(1, bbox=[10.4, 20.6, 30, 50], area=0) | {"segmentation": empty}))
    assert (only(folder).crowd, only(folder).box, only(folder).area) == (True, (10, 20, 31, 40), 1240)
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[20:, 10:41] = True
    np.testing.assert_array_equal(only(folder).mask(), expected)
    assert "annotations with a box but no mask, ignored as crowds are: 1; first: annotation 1" in (folder.notes[0])
    assert folder.ground_truth()["annotations"][0]["iscrowd"] == 1


def test_many_crowds_are_remarked(tmp_path: Path) -> None:
    """Some exporters mark each object of several parts as a crowd, and it would silently teach nothing."""
    objects = [entry(key, GOOD) for key in range(1, 10)]
    assert CocoFolder(write(tmp_path, *objects, entry(10, GOOD) | {"iscrowd": 1})).notes == []
    (note,) = CocoFolder(write(tmp_path, *objects, *(entry(k, GOOD) | {"iscrowd": 1} for k in (10, 11)))).notes
    assert "annotations that are crowds, of 11, neither learned nor counted (set iscrowd to 0 where" in note
    assert note.endswith(": 2; first: annotation 10")


BROKEN: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "polygon of NaN, with a box": (entry(1, [NAN] * 6, bbox=[30, 20, 10, 10]), (30, 20, 10, 10)),
    "polygon with a NaN": (entry(1, [30, 20, 40, 20, 40, 30, 30, NAN]), (30, 20, 10, 10)),
    "odd polygon and a good one": (entry(1, GOOD, [30, 20, 40, 20, 40, 30, 30]), (5, 8, 35, 22)),
    "text and a good one": (entry(1, GOOD, ["a"]), (5, 8, 20, 12)),
    "category": (entry(1, GOOD) | {"category_id": 5}, (5, 8, 20, 12)),
    "iscrowd": (entry(1, GOOD, iscrowd="x"), (5, 8, 20, 12)),
    "id": (entry(1, GOOD) | {"id": "1"}, (5, 8, 20, 12)),
    "RLE": (entry(1, bbox=[30, 20, 10, 10]) | {"segmentation": {"size": [1, 1], "counts": "0"}}, (30, 20, 10, 10)),
    "far outside": (entry(1, [30, 20, 40, 20, 40, 30, 30, 1e9]), (30, 20, 10, 10)),
    "normalised, with a box": (entry(1, rectangle(0, 0, 1, 1), bbox=[30, 20, 10, 10]), (30, 20, 10, 10)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_left_out_object_is_an_ignored_region(tmp_path: Path, name: str) -> None:
    broken, box = BROKEN[name]
    good = entry(2, rectangle(60, 40, 15, 15))
    folder = CocoFolder(write(tmp_path, broken, good, entry(3, rectangle(60, 40, 15, 15))), skip_bad=True)
    assert len(folder.skipped) == 1
    (ignored,) = (instance for instance in folder.photos[0].instances if instance.crowd)
    assert (ignored.box, ignored.category_id) == (box, 1)
    assert len(folder.photos[0].instances) == 3
    assert len({instance.id for instance in folder.photos[0].instances}) == 3
    assert folder.photos[0].complete


@pytest.mark.parametrize("nothing", [[], [1.0], [30, 20, 40, 20]])
def test_a_broken_polygon_that_draws_nothing_is_left_out_alone(tmp_path: Path, nothing: list[float]) -> None:
    write(tmp_path, entry(9, GOOD, nothing))
    with pytest.raises(DataError, match="annotation 9: polygon 2 of 2 must be x, y of at least 3 points, got"):
        CocoFolder(tmp_path)
    folder = CocoFolder(tmp_path, skip_bad=True)
    assert len(folder.skipped) == 1
    assert "annotation 9: polygon 2 of 2 must be" in folder.skipped[0]
    assert only(folder).crowd == (len(nothing) % 2 == 1)
    assert only(folder).box == (5, 8, 20, 12)


def test_a_photo_with_an_object_that_nobody_can_locate_teaches_no_background(tmp_path: Path) -> None:
    lost = entry(2, [NAN] * 6, bbox=[0, 0, 0, 0])
    folder = CocoFolder(write(tmp_path, entry(1, GOOD), lost), skip_bad=True)
    assert not folder.photos[0].complete
    assert [instance.id for instance in folder.photos[0].instances] == [1]
    assert (
        "photos with an object left out that cannot be located, which teach no background: 1; first: image 1"
        in (folder.notes[0])
    )
    with pytest.raises(DataError, match=r"must hold a completely annotated photo, .* got none; .*part-negatives"):
        TileBatches(folder, TileConfig(side=64), window=48).check_objects()
    assert PatchSampler(folder, head="mask").sample(0)
    with pytest.raises(DataError, match=r"must hold a completely annotated photo, .* got none; .*--score-share 0"):
        PatchSampler(folder, head="score")


def test_no_negative_shows_an_object_that_was_left_out(tmp_path: Path) -> None:
    """The same windows are negatives whether an object was left out or marked as a crowd."""
    box = [30, 20, 20, 20]
    polygon = rectangle(*box)
    left_out = CocoFolder(
        write(tmp_path / "a", entry(1, GOOD), entry(2, [*polygon, NAN, NAN], bbox=box)), skip_bad=True
    )
    marked = CocoFolder(write(tmp_path / "b", entry(1, GOOD), entry(2, polygon, iscrowd=1)))
    windows = PaperWindows(160)
    for seed in range(50):
        crops = [windows.negative(np.random.default_rng(seed), folder.photos[0]) for folder in (left_out, marked)]
        assert crops[0] == crops[1]


def test_ids_that_are_missing_are_numbered_on(tmp_path: Path) -> None:
    entries = [entry(None, GOOD), entry(7, GOOD), entry(None, GOOD) | {"id": None}]
    folder = CocoFolder(write(tmp_path, *entries))
    assert [instance.id for instance in folder.photos[0].instances] == [7, 8, 9]
    assert folder.notes[0].endswith("annotations without an id, numbered on from the highest: 2; first: annotation 8")


def test_an_rle_that_is_longer_than_its_image_allows_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    counts: list[Any] = ["0" * 10_000_000, [0] * 1_000_000]
    for number, value in enumerate(counts):
        rle = {"size": [HEIGHT, WIDTH], "counts": value}
        root = write(tmp_path / str(number), entry(1) | {"segmentation": rle})
        tracemalloc.start()
        with pytest.raises(DataError, match=r"annotation 1: RLE counts must be at most 9608 .* for 4800 pixels, got"):
            CocoFolder(root)
        assert tracemalloc.get_traced_memory()[1] < 60e6
        tracemalloc.stop()


def test_runs_of_no_pixels_change_neither_box_nor_area() -> None:
    plain = read_shape({"size": [6, 5], "counts": [8, 2, 4, 2, 14]}, 6, 5)
    for counts in ([8, 0, 0, 2, 4, 1, 0, 1, 14, 0, 0], [8, 1, 0, 1, 0, 0, 4, 2, 10, 0, 4], [0, 0, 8, 2, 4, 2, 14]):
        shape = read_shape({"size": [6, 5], "counts": counts}, 6, 5)
        assert (shape.box, shape.area) == (plain.box, plain.area) == ((1, 2, 2, 2), 4)

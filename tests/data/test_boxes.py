"""Annotated boxes and areas against the masks, which count."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sharpmask.data.coco import CocoFolder
from sharpmask.data.sampling import PatchSampler
from sharpmask.data.tile_config import TileConfig
from sharpmask.data.tiles import TileBatches
from sharpmask.errors import DataError
from sharpmask.evaluation import average_recall

from .folders import HEIGHT, WIDTH, entry, rectangle, write

MASKS = [(5, 8, 20, 12), (40, 10, 30, 20), (12, 30, 9, 25), (50, 35, 25, 15), (30, 45, 11, 11)]
Box = tuple[float, float, float, float]


def folder_with_boxes(root: Path, box: Callable[[Box], Any], **more: Any) -> CocoFolder:
    entries = [entry(key, rectangle(*mask), bbox=box(mask), **more) for key, mask in enumerate(MASKS, 1)]
    return CocoFolder(write(root, *entries))


def boxes(folder: CocoFolder) -> list[Any]:
    return [instance.box for instance in folder.photos[0].instances]


def noisy(box: Box) -> list[float]:
    return [value + random.Random(str(box)).choice((-1, 0, 1)) for value in box]


ACCEPTED: dict[str, Callable[[Box], Any]] = {
    "exact": list,
    "missing": lambda b: None,
    "empty": lambda b: [],
    "rounded": noisy,
    "last pixel": lambda b: [b[0], b[1], b[2] - 1, b[3] - 1],
}
PLACEHOLDERS: dict[str, Callable[[Box], Any]] = {
    "zeros": lambda b: [0, 0, 0, 0],
    "whole image": lambda b: [0, 0, WIDTH, HEIGHT],
    "negative": lambda b: [-1, -1, -1, -1],
    "anything": lambda b: [b[3], 17, 3 * b[2] % 31, 40],
}
READINGS: dict[str, tuple[Callable[[Box], Any], str]] = {
    "corners": (lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]], "[x1, y1, x2, y2]"),
    "corners, y first": (lambda b: [b[1], b[0], b[1] + b[3], b[0] + b[2]], "[y1, x1, y2, x2]"),
    "centre": (lambda b: [b[0] + b[2] / 2, b[1] + b[3] / 2, b[2], b[3]], "[centre x, centre y, width, height]"),
    "y first": (lambda b: [b[1], b[0], b[3], b[2]], "[y, x, height, width]"),
    "normalised": (
        lambda b: [b[0] / WIDTH, b[1] / HEIGHT, b[2] / WIDTH, b[3] / HEIGHT],
        "[x, y, width, height] in 0..1 of the photo (normalised)",
    ),
    "YOLO": (
        lambda b: [(b[0] + b[2] / 2) / WIDTH, (b[1] + b[3] / 2) / HEIGHT, b[2] / WIDTH, b[3] / HEIGHT],
        "[centre x, centre y, width, height] in 0..1 of the photo (normalised)",
    ),
    "per cent": (
        lambda b: [b[0] / WIDTH * 100, b[1] / HEIGHT * 100, b[2] / WIDTH * 100, b[3] / HEIGHT * 100],
        "[x, y, width, height] in per cent of the photo",
    ),
    "half": (lambda b: [value / 2 for value in b], "[x, y, width, height] of photos scaled by 0.5"),
    "double corners": (
        lambda b: [2 * b[0], 2 * b[1], 2 * (b[0] + b[2]), 2 * (b[1] + b[3])],
        "[x1, y1, x2, y2] of photos scaled by 2",
    ),
    "resized": (
        lambda b: [b[0] * 640 / WIDTH, b[1] * 640 / HEIGHT, b[2] * 640 / WIDTH, b[3] * 640 / HEIGHT],
        "[x, y, width, height] of photos resized to 640x640",
    ),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_usual_boxes_pass_without_a_word(tmp_path: Path, name: str) -> None:
    folder = folder_with_boxes(tmp_path, ACCEPTED[name])
    assert boxes(folder) == MASKS
    assert folder.notes == []


@pytest.mark.parametrize("name", PLACEHOLDERS)
def test_wrong_boxes_are_said_once_and_the_masks_count(tmp_path: Path, name: str) -> None:
    folder = folder_with_boxes(tmp_path, PLACEHOLDERS[name])
    assert boxes(folder) == MASKS
    (note,) = folder.notes
    assert (
        "instances.json: boxes that differ from their masks, which count: 5 of 5; first: annotation 1: bbox [" in note
    )
    assert "its mask's [5, 8, 20, 12]" in note


@pytest.mark.parametrize("skip_bad", [False, True])
@pytest.mark.parametrize("name", READINGS)
def test_boxes_of_another_meaning_are_refused_by_its_name(tmp_path: Path, name: str, skip_bad: bool) -> None:
    box, reading = READINGS[name]
    entries = [entry(key, rectangle(*mask), bbox=box(mask)) for key, mask in enumerate(MASKS, 1)]
    with pytest.raises(DataError) as caught:
        CocoFolder(write(tmp_path, *entries), skip_bad=skip_bad)
    assert "\n" not in str(caught.value)
    assert f"but 5 of 5 are {reading}; write them so or leave bbox out; first: annotation 1: bbox [" in str(
        caught.value
    )


def test_a_few_boxes_of_another_meaning_are_only_said(tmp_path: Path) -> None:
    entries = [entry(key, rectangle(*mask), bbox=list(mask)) for key, mask in enumerate(MASKS, 1)]
    for one in entries[:2]:
        x, y, w, h = one["bbox"]
        one["bbox"] = [x, y, x + w, y + h]
    folder = CocoFolder(write(tmp_path, *entries))
    assert boxes(folder) == MASKS
    assert "count: 2 of 5;" in folder.notes[0]


@pytest.mark.parametrize("more", [(0, 4), (4, 4), (4, 0)])
def test_boxes_a_little_longer_than_masks_are_only_said(tmp_path: Path, more: tuple[int, int]) -> None:
    masks = [(10 + k, 8 + k, 50, 38) for k in range(5)]
    entries = [entry(k, rectangle(*m), bbox=[m[0], m[1], m[2] + more[0], m[3] + more[1]]) for k, m in enumerate(masks)]
    folder = CocoFolder(write(tmp_path, *entries))
    assert boxes(folder) == masks
    assert "count: 5 of 5;" in folder.notes[0]


def test_crowds_are_compared_too(tmp_path: Path) -> None:
    entries = [entry(7, rectangle(*MASKS[0]), bbox=[40, 40, 9, 9], iscrowd=1)]
    folder = CocoFolder(write(tmp_path, *entries))
    assert boxes(folder) == [MASKS[0]]
    assert "boxes that differ from their masks, which count: 1 of 1; first: annotation 7" in folder.notes[-1]


def test_parts_that_draw_nothing_do_not_widen_the_box(tmp_path: Path) -> None:
    sliver, outside = [70.1, 50.1, 70.3, 50.1, 70.3, 50.2], rectangle(-30, -20, 20, 10)
    for number, part in enumerate((sliver, outside)):
        folder = CocoFolder(write(tmp_path / str(number), entry(1, rectangle(5, 8, 20, 12), part)))
        assert boxes(folder) == [(5, 8, 20, 12)]
        assert folder.photos[0].instances[0].area == 240


@pytest.mark.parametrize("area", [None, 240, 250.5, 0, 1e6, -1])
def test_area_is_the_masks(tmp_path: Path, area: float | None) -> None:
    folder = CocoFolder(write(tmp_path, entry(4, rectangle(5, 8, 20, 12), area=area)))
    assert folder.photos[0].instances[0].area == folder.ground_truth()["annotations"][0]["area"] == 240
    if area in (None, 240, 250.5):
        assert folder.notes == []
    else:
        assert "areas that differ from their masks', which count: 1 of 1; first: annotation 4: area " in folder.notes[0]
        assert folder.notes[0].endswith(f"area {area:g} of 240 pixels")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"area": "240"}, "area must be a number of pixels, got '240'"),
        ({"area": float("nan")}, "area must be a number of pixels, got nan"),
        ({"bbox": "none"}, "bbox must be [x, y, width, height], got 'none'"),
        ({"bbox": [1, 2, 3]}, "bbox must be [x, y, width, height], got [1, 2, 3]"),
        ({"bbox": [1, 2, float("nan"), 4]}, "bbox must be [x, y, width, height], got [1, 2, nan, 4]"),
    ],
)
def test_what_cannot_be_read_beside_a_mask_is_only_said(tmp_path: Path, fields: dict[str, Any], told: str) -> None:
    entries = [entry(4, rectangle(5, 8, 20, 12), **fields), entry(5, rectangle(5, 8, 20, 12), **fields)]
    folder = CocoFolder(write(tmp_path, *entries))
    assert boxes(folder) == [(5, 8, 20, 12)] * 2
    assert [instance.area for instance in folder.photos[0].instances] == [240, 240]
    (note,) = folder.notes
    assert f"box or area beside their mask, which counts: 2; first: annotation 4: {told}" in note


def test_training_sees_the_same_whatever_the_boxes(tmp_path: Path, synth: Path) -> None:
    """The folder of the fixture, with boxes of its masks and with placeholders."""
    shutil.copytree(synth, tmp_path / "set")
    data = json.loads((synth / "instances.json").read_text())
    for number, annotation in enumerate(data["annotations"]):
        annotation["bbox"] = [0, 0, 0, 0] if number % 2 else [0, 0, 320, 240]
        annotation["area"] = 0
    (tmp_path / "set" / "instances.json").write_text(json.dumps(data))
    folders = CocoFolder(synth), CocoFolder(tmp_path / "set")
    config = TileConfig(side=128, tiles=2)
    for step in range(5):
        plain, other = (TileBatches(folder, config, window=48)[step] for folder in folders)
        assert plain.masks.equal(other.masks) and plain.image.equal(other.image)
        plain_patch, patch = (PatchSampler(folder, head="mask", window=48).sample(step) for folder in folders)
        assert plain_patch[0].equal(patch[0])


@pytest.mark.parametrize("name", [*ACCEPTED, *PLACEHOLDERS])
def test_perfect_masks_have_perfect_boxes(tmp_path: Path, name: str) -> None:
    truth = folder_with_boxes(tmp_path, (ACCEPTED | PLACEHOLDERS)[name], area=0).ground_truth()
    results = [
        {
            "image_id": 1,
            "score": 1.0,
            "segmentation": {**a["segmentation"], "counts": a["segmentation"]["counts"].encode()},
        }
        for a in truth["annotations"]
    ]
    for kind in ("bbox", "segm"):
        recall = average_recall(truth, results, kind=kind)  # type: ignore[arg-type]
        assert recall.ar[10]["all"] == recall.ar[10]["small"] == 1
        assert math.isnan(recall.ar[10]["large"])

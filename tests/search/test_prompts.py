"""Points and boxes: what is none is refused by its place and value; masks are clipped on request."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from sharpmask.data.images import load_image
from sharpmask.models import SharpMask
from sharpmask.search.generator import ProposalGenerator
from sharpmask.search.prompts import as_boxes, as_points, clip_to_box


@pytest.fixture(scope="module")
def photo(synth: Path) -> np.ndarray:
    return load_image(synth / "images" / "000002.png")


@pytest.fixture
def generator(tiny_sharpmask: SharpMask) -> ProposalGenerator:
    return ProposalGenerator(tiny_sharpmask)


SIZE = 120, 160
GOOD = (10.0, 20.0, 30.0, 40.0)


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ((1, 2, 3), "must be 4 finite numbers (x, y, width, height), got (1, 2, 3)"),
        ((1, 2, 3, 4, 5), "must be 4 finite numbers"),
        ((1, 2, math.nan, 4), "must be 4 finite numbers"),
        ((1, 2, math.inf, 4), "must be 4 finite numbers"),
        ((1, 2, 10**400, 4), "must be 4 finite numbers"),
        (("1", "2", "a", "4"), "must be 4 finite numbers"),
        ("1234", "must be 4 finite numbers"),
        ((1, 2, None, 4), "must be 4 finite numbers"),
        ((1, 2, 3j, 4), "must be 4 finite numbers"),
        (None, "must be 4 finite numbers"),
        ({"x": 1}, "must be 4 finite numbers"),
        ((1, 2, 0, 4), "must have a width and a height above 0, got (1.0, 2.0, 0.0, 4.0)"),
        ((50, 60, -20, 10), "must have a width and a height above 0"),
        ((160, 10, 5, 5), "must overlap the photo of 160x120 pixels, got (160.0, 10.0, 5.0, 5.0)"),
        ((10, 120, 5, 5), "must overlap the photo"),
        ((-20, 90, 5, 5), "must overlap the photo"),
        ((10, -5, 5, 5), "must overlap the photo"),
    ],
)
def test_what_is_no_box_is_refused(box: Any, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        as_boxes([GOOD, box], SIZE)
    assert str(caught.value).startswith("boxes[1] ") and said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("point", [(-0.1, 5), (5, -1), (160.5, 5), (5, 121), (-50, 500)])
def test_a_point_outside_is_refused(point: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"points\[1\] must lie on the photo of 160x120 pixels, got"):
        as_points([(0, 0), point], SIZE)


@pytest.mark.parametrize("points", [5, None, "ab", {"x": 1}, {1, 2}])
def test_what_is_no_list_is_refused(points: Any) -> None:
    with pytest.raises(ValueError, match=r"points must be a list of \(x, y\), got"):
        as_points(points, SIZE)


def test_boxes_and_points_of_every_container() -> None:
    boxes = [GOOD, (-5.0, -5.0, 200.0, 200.0)]
    for given in (boxes, tuple(boxes), np.array(boxes), torch.tensor(boxes), [list(b) for b in boxes]):
        assert as_boxes(given, SIZE) == boxes
    assert as_boxes([np.array(GOOD, np.float32), torch.tensor(GOOD)], SIZE) == [GOOD, GOOD]
    assert as_points([(0, 0), (160, 120)], SIZE) == [(0.0, 0.0), (160.0, 120.0)]
    for nothing in ([], (), np.zeros((0, 4)), torch.zeros(0, 4)):
        assert as_boxes(nothing, SIZE) == []


def test_a_single_one_needs_no_list(generator: ProposalGenerator, photo: np.ndarray) -> None:
    for box in (GOOD, list(GOOD), np.array(GOOD), torch.tensor(GOOD)):
        assert generator.in_boxes(photo, box).rles == generator.in_boxes(photo, [GOOD]).rles
    for point in ((30, 40), np.array([30, 40]), [np.float32(30), 40]):
        assert generator.at_points(photo, point).rles == generator.at_points(photo, [(30, 40)]).rles


def test_prompts_are_checked_before_the_search(
    generator: ProposalGenerator, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ProposalGenerator, "look", lambda *_: pytest.fail("searched"))
    with pytest.raises(ValueError, match=r"boxes\[0\] must have a width"):
        generator.in_boxes(photo, [(1, 2, 0, 0)])
    with pytest.raises(ValueError, match=r"points\[0\] must lie"):
        generator.at_points(photo, [(1, 200)])
    with pytest.raises(ValueError, match="candidates must be a whole number from 1"):
        generator.at_points(photo, [(1, 2)], candidates=0)
    with pytest.raises(ValueError, match="boxes must be a list"):
        generator.in_boxes(photo, None)  # type: ignore[arg-type]


def test_clip_cuts_masks_off_at_their_boxes(generator: ProposalGenerator, photo: np.ndarray) -> None:
    boxes = [(40.5, 30.2, 20.0, 15.0), (-10.0, 90.0, 40.0, 60.0), (0.0, 0.0, 160.0, 120.0), (100.0, 70.0, 0.4, 0.4)]
    whole, clipped = generator.in_boxes(photo, boxes), generator.in_boxes(photo, boxes, clip=True)
    assert whole.scores.tolist() == clipped.scores.tolist()
    beyond = 0
    for (x, y, w, h), before, after in zip(boxes, whole.iter_masks(), clipped.iter_masks(), strict=True):
        inside = np.zeros_like(before)
        rows = slice(max(0, math.floor(y)), math.ceil(y + h))
        inside[rows, max(0, math.floor(x)) : math.ceil(x + w)] = True
        assert np.array_equal(after, before & inside)
        beyond += (before & ~inside).sum()
    assert beyond, "some mask leaves its box"


def test_clipping_is_exact_to_the_pixel() -> None:
    full = dict(coco_mask.encode(np.asfortranarray(np.ones((7, 9), np.uint8))))
    rng = np.random.default_rng(0)
    for _ in range(100):
        x, y, right, bottom = rng.uniform(-2, 9, 2).tolist() + rng.uniform(-2, 9, 2).tolist()
        box = min(x, right), min(y, bottom), abs(x - right), abs(y - bottom)
        if box[0] + box[2] <= 0 or box[1] + box[3] <= 0 or box[1] >= 7:
            continue
        expected = np.zeros((7, 9), np.uint8)
        rows = slice(max(0, math.floor(box[1])), math.ceil(box[1] + box[3]))
        expected[rows, max(0, math.floor(box[0])) : math.ceil(box[0] + box[2])] = 1
        assert np.array_equal(coco_mask.decode(clip_to_box(full, box)), expected), box


def test_grow_has_as_many_windows_as_the_grid(generator: ProposalGenerator, photo: np.ndarray) -> None:
    for index in (-1, 10**6, 1.5):
        with pytest.raises(ValueError, match="index must be a whole number from 0 to"):
            generator.grow(photo, index)  # type: ignore[arg-type]


def test_a_patch_without_its_context_is_refused(tiny_sharpmask: SharpMask) -> None:
    side = tiny_sharpmask.window + tiny_sharpmask.context
    for shape in ((1, 3, 48, 48), (3, side, side), (1, 1, side, side), (1, 3, side, side + 32)):
        with pytest.raises(ValueError, match=rf"patch must be \(B, 3, {side}, {side}\), the window of 48 pixels with"):
            tiny_sharpmask(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"patch must be floats in \[0, 1\], got torch.uint8; patch / 255 converts"):
        tiny_sharpmask(torch.zeros(1, 3, side, side, dtype=torch.uint8))

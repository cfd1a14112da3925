"""Masks for clicks and boxes: they answer what was asked, best first, in the form of Segment Anything's predictor."""

import copy
import inspect
import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

import sharpmask
from sharpmask import MaskPredictor, ProposalGenerator
from sharpmask.data.images import load_image
from sharpmask.errors import DataError
from sharpmask.models import SharpMask
from sharpmask.models.inference import InferenceForm
from sharpmask.search.answers import LARGER, differing
from sharpmask.search.looking import stability
from sharpmask.search.maps import Stopwatch, grid_of
from sharpmask.search.predictor import NOWHERE, SIDE, small_size
from sharpmask.search.prompts import CANDIDATES, Prompt, agreement, candidates, contained

POINTS = [(80.0, 60.0), (5.0, 110.0), (131.7, 22.4), (0.0, 0.0), (160.0, 120.0), (40.0, 90.0)]
COFFEE = Path(sharpmask.__file__).parent / "assets" / "coffee.jpg"


@pytest.fixture(scope="module")
def photo(synth: Path) -> np.ndarray:
    return load_image(synth / "images" / "000002.png")


@pytest.fixture(scope="module")
def predictor(tiny_sharpmask: SharpMask, photo: np.ndarray) -> MaskPredictor:
    predictor = MaskPredictor(tiny_sharpmask)
    predictor.set_image(photo)
    return predictor


@pytest.fixture(scope="module")
def shipped() -> MaskPredictor:
    predictor = MaskPredictor(sharpmask.load_model())
    predictor.set_image(COFFEE)
    return predictor


def rle(mask: np.ndarray) -> dict[str, Any]:
    return dict(coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)))


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


@pytest.mark.parametrize("point", POINTS)
def test_shapes_dtypes_and_order(predictor: MaskPredictor, photo: np.ndarray, point: tuple[float, float]) -> None:
    masks, scores, small = predictor.predict(points=[point])
    count = len(masks)
    assert 1 <= count <= 3
    assert masks.shape == (count, *photo.shape[:2]) and masks.dtype == bool
    assert scores.shape == (count,) and scores.dtype == np.float32 and (scores >= 0).all() and (scores <= 1).all()
    assert small.shape == (count, SIDE, SIDE) and small.dtype == np.float32
    sizes = masks.sum((1, 2))
    assert (sizes[1:] >= LARGER * sizes[:-1]).all()
    (mask,), (score,), _ = predictor.predict(points=[point], multimask=False)
    assert score == scores.max() and np.array_equal(mask, masks[scores.argmax()])


def test_arguments_are_those_of_segment_anything(predictor: MaskPredictor) -> None:
    theirs = ["point_coords", "point_labels", "box", "mask_input", "multimask_output", "return_logits"]
    ours = list(inspect.signature(predictor.predict).parameters)
    assert ours[:6] == ["points", "labels", "boxes", "mask_input", "multimask", "return_logits"], "in their order"
    assert set(theirs) <= set(ours)
    points, labels, box = np.array([[80, 60], [20, 20]]), np.array([1, 0]), np.array([30, 20, 130, 110])
    expected = predictor.predict(points, labels, box, None, False)
    found = predictor.predict(point_coords=points, point_labels=labels, box=box, multimask_output=False)
    listed = predictor.predict(points.tolist(), labels.tolist(), [box.tolist()], multimask=False)
    as_tensors = predictor.predict(torch.tensor(points), torch.tensor(labels), torch.tensor(box), multimask=False)
    for other in (found, listed, as_tensors):
        for a, b in zip(expected, other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_trunk_runs_once(tiny_sharpmask: SharpMask, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = MaskPredictor(tiny_sharpmask)
    runs: list[torch.Size] = []
    original = InferenceForm.__call__
    monkeypatch.setattr(InferenceForm, "__call__", lambda self, x: (runs.append(x.shape), original(self, x))[1])
    predictor.set_image(photo)
    assert len(runs) == len(tiny_sharpmask.search.scales)
    for point in POINTS:
        predictor.predict([point])
    assert len(runs) == len(tiny_sharpmask.search.scales)


def test_the_best_candidate_that_answers_all_clicks_wins(predictor: MaskPredictor, photo: np.ndarray) -> None:
    """By pixels, of the masks of all candidates."""
    maps, grid = predictor._maps
    asked = [
        ([POINTS[0]], [POINTS[5]]),
        (POINTS[:1], []),
        ([POINTS[2], POINTS[0]], [POINTS[1]]),
        ([POINTS[5]], [(60, 90)]),
    ]
    answered = 0
    for on, beside in asked:
        prompt, watch = Prompt(on, beside), Stopwatch(torch.device("cpu"))
        with torch.inference_mode():
            windows = grid.windows([candidates(grid, prompt, predictor.model.window, CANDIDATES)])
            rles = predictor.segment(maps, windows, watch)
            score = (windows.score.sigmoid() * stability(predictor.window_logits(maps, windows, watch))).numpy()
        masks = [coco_mask.decode(each).astype(bool) for each in rles]
        share = [
            np.mean([m[int(y), int(x)] for x, y in on]) * np.mean([not m[int(y), int(x)] for x, y in beside] or [1])
            for m in masks
        ]
        good = [i for i, s in enumerate(share) if s == max(share)]
        best = max(good, key=lambda i: score[i] / masks[i].sum() ** 0.5)
        labels = [1] * len(on) + [0] * len(beside)
        (mask,), (found,), _ = predictor.predict([*on, *beside], labels, multimask=False)
        assert np.array_equal(mask, masks[best])
        assert found == pytest.approx(score[best] * max(share), rel=1e-5)
        answered += max(share) == 1
    assert answered >= 3


def test_a_click_beside_the_object_takes_it_away(predictor: MaskPredictor) -> None:
    changed = 0
    for x, y in POINTS[:3]:
        (mask,), _, _ = predictor.predict([(x, y)], multimask=False)
        rows, cols = np.nonzero(mask)
        for i in range(0, len(rows), max(1, len(rows) // 5)):
            masks, scores, _ = predictor.predict([(x, y), (cols[i], rows[i])], [1, 0])
            if (scores > 0).all() and abs(cols[i] - x) + abs(rows[i] - y) > 2:
                best = masks[scores.argmax()]
                if best[int(y), int(x)] and not best[rows[i], cols[i]]:
                    changed += 1
    assert changed >= 3


def test_candidates_reach_all_points(predictor: MaskPredictor) -> None:
    """Of each scale the best-scoring windows whose object may cover the points; where none can, the nearest."""
    maps, _ = predictor._maps
    grid = grid_of(maps, predictor.model.window)
    for points in ([(80.0, 60.0)], [(70.0, 50.0), (90.0, 65.0)], [(0.0, 0.0), (160.0, 120.0)]):
        found = candidates(grid, Prompt(points), predictor.model.window, 4).tolist()
        for scale in range(len(maps.scales)):
            every = [i for i in range(len(grid.scale)) if grid.scale[i] == scale]
            far = {i: max(max(abs(float(grid.x[i]) - x), abs(float(grid.y[i]) - y)) for x, y in points) for i in every}
            short = {i: max(0.0, far[i] / float(grid.reach[i]) - 1) for i in every}
            wanted = sorted(every, key=lambda i: (round(short[i], 5), -float(grid.score[i])))[:4]
            assert [i for i in found if grid.scale[i] == scale] == wanted


def test_boxes_are_answered_by_masks_that_fill_them(predictor: MaskPredictor) -> None:
    boxes = np.array([[40, 30, 90, 80], [0, 0, 60, 60], [100, 70, 150, 115]])
    masks, scores, small = predictor.predict(boxes=boxes, multimask=False)
    assert masks.shape == (3, 1, 120, 160) and scores.shape == (3, 1) and small.shape == (3, 1, SIDE, SIDE)
    for i, box in enumerate(boxes):
        alone = predictor.predict(boxes=box, multimask=False)
        for a, b in zip((masks[i], scores[i], small[i]), alone, strict=True):
            np.testing.assert_array_equal(a, b)
    # As in_boxes gives them, whose boxes are x, y, width, height.
    xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
    generator = ProposalGenerator(predictor.model)
    found = generator.in_boxes(predictor._maps[0].picture.pixels, xywh)
    np.testing.assert_array_equal(found.masks(), masks[:, 0])
    np.testing.assert_allclose(found.scores, scores[:, 0], rtol=1e-6)


def test_a_box_may_reach_beyond_the_photo(predictor: MaskPredictor) -> None:
    inside, score, _ = predictor.predict(boxes=[0, 0, 160, 120], multimask=False)
    masks, scores, _ = predictor.predict(boxes=[-40, -30, 200, 150], multimask=False)
    np.testing.assert_array_equal(masks, inside)
    np.testing.assert_allclose(scores, score)


def test_a_copy_has_no_photo(predictor: MaskPredictor) -> None:
    for copied in (copy.deepcopy(predictor), pickle.loads(pickle.dumps(predictor))):
        assert predictor.is_image_set and not copied.is_image_set


def test_agreement_is_counted_by_pixels() -> None:
    rng = np.random.default_rng(0)
    masks = rng.random((6, 30, 40)) > 0.4
    masks[5] = False
    rles = [rle(mask) for mask in masks]
    on, beside = [(3.2, 4.9), (40.0, 30.0), (20.0, 0.0)], [(9.0, 9.5)]
    inside = np.array([[m[min(29, int(y)), min(39, int(x))] for m in masks] for x, y in [*on, *beside]])
    np.testing.assert_array_equal(contained(rles, [*on, *beside]), inside)
    share = inside[:3].mean(0) * ~inside[3]
    expected = np.where(share == share.max(), share, 0)
    np.testing.assert_allclose(agreement(Prompt(on, beside), rles), expected)
    earlier = masks[0] ^ (rng.random((30, 40)) > 0.9)
    overlap = np.array([iou(mask, earlier) for mask in masks])
    np.testing.assert_allclose(agreement(Prompt(on, beside, mask=rle(earlier)), rles), expected * overlap)
    blocks = np.zeros((2, 30, 40), bool)
    blocks[0, 5:15, 10:30] = blocks[1, 8:10, 12:20] = True
    found = agreement(Prompt(box=(10, 5, 10, 10)), [rle(block) for block in blocks])
    np.testing.assert_allclose(found, [100 / 200, 16 / 100])


def test_masks_of_one_size_are_one_choice() -> None:
    area = np.array([100, 110, 300, 149, 30, 1000], np.float64)
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], np.float32)
    assert differing(area, scores, np.arange(6)) == [0, 2, 4]
    assert differing(area, scores, np.array([5, 4, 3])) == [5, 4, 3]
    scores[2:] = 0
    assert differing(area, scores, np.arange(6)) == [0]


@pytest.mark.parametrize("geometry", ["centres", "released"])
@pytest.mark.parametrize("refine", [True, False])
def test_masks_are_where_logits_exceed_0(
    tiny_sharpmask: SharpMask, photo: np.ndarray, geometry: Any, refine: bool
) -> None:
    search = replace(tiny_sharpmask.search, geometry=geometry, threshold=0.3)
    predictor = MaskPredictor(tiny_sharpmask, refine=refine, search=search)
    predictor.set_image(photo)
    for point in POINTS[:3]:
        masks, scores, small = predictor.predict([point])
        logits, same, _ = predictor.predict([point], return_logits=True)
        assert logits.dtype == np.float32 and logits.shape == masks.shape and np.array_equal(scores, same)
        clear = np.abs(logits) > 1e-4
        assert clear.mean() > 0.99 and np.array_equal(logits[clear] > 0, masks[clear])
        assert logits.min() >= NOWHERE
        rows, cols = small_size(photo.shape[:2])
        assert (rows, cols) == (192, 256)
        assert (small[:, rows:] == NOWHERE).all()
        # A small pixel is nearest to one of the photo's.
        y, x = ((np.arange(n) + 0.5) * m / n for n, m in zip((rows, cols), photo.shape, strict=False))
        near = masks[:, y.astype(int)][:, :, x.astype(int)]
        assert min(iou(a, b) for a, b in zip(small[:, :rows, :cols] > 0, near, strict=True)) > 0.8


def test_an_earlier_mask_is_preferred(predictor: MaskPredictor) -> None:
    followed = 0
    for point in POINTS:
        masks, _, small = predictor.predict([point])
        (plain,), _, _ = predictor.predict([point], multimask=False)
        for mask, logits in zip(masks, small, strict=True):
            (again,), _, _ = predictor.predict([point], mask_input=logits[None], multimask=False)
            assert iou(again, mask) >= iou(plain, mask)
            followed += np.array_equal(again, mask) and not np.array_equal(plain, mask)
    assert followed >= 3


def test_predictions_are_those_of_at_points(predictor: MaskPredictor, photo: np.ndarray) -> None:
    found = ProposalGenerator(predictor.model).at_points(photo, POINTS)
    for i, (point, mask) in enumerate(zip(POINTS, found.iter_masks(), strict=True)):
        (expected,), (score,), _ = predictor.predict([point], multimask=False)
        assert np.array_equal(mask, expected) and found.scores[i] == pytest.approx(score, rel=1e-6)


def test_a_file_and_bgr(predictor: MaskPredictor, photo: np.ndarray, synth: Path) -> None:
    expected = predictor.predict([POINTS[0]])
    other = MaskPredictor(predictor.model)
    assert not other.is_image_set
    for image, order in ((synth / "images" / "000002.png", "RGB"), (photo[..., ::-1], "BGR")):
        other.set_image(image, order)  # type: ignore[arg-type]
        assert other.is_image_set and other.original_size == photo.shape[:2]
        for a, b in zip(expected, other.predict([POINTS[0]]), strict=True):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(DataError, match="image_format must be one of 'RGB', 'BGR', got 'GBR'"):
        other.set_image(photo, "GBR")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="image_format must be 'RGB' for what is no array, got 'BGR'"):
        other.set_image(COFFEE, "BGR")


def test_without_a_photo_there_is_no_answer(tiny_sharpmask: SharpMask, photo: np.ndarray, tmp_path: Path) -> None:
    predictor = MaskPredictor(tiny_sharpmask)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no photo")
    for forget in (lambda: None, predictor.reset_image, lambda: predictor.set_image(broken)):
        with pytest.raises(RuntimeError, match=r"^predict needs a photo: call set_image first$"):
            predictor.predict([(1, 1)])
        predictor.set_image(photo)
        predictor.predict([(1, 1)])
        try:
            forget()
        except DataError:
            assert not predictor.is_image_set
        predictor.reset_image()


SMALL = np.ones((1, SIDE, SIDE), np.float32)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "points must hold a click, or boxes a box, got neither"),
        ({"points": [], "boxes": np.zeros((0, 4))}, "points must hold a click, or boxes a box, got neither"),
        ({"points": [(1, 2)], "point_coords": [(1, 2)]}, "points and point_coords are one argument: give one of them"),
        ({"points": [(1, 2), (3, 200)]}, "points[1] must lie on the photo of 160x120 pixels, got (3.0, 200.0)"),
        ({"point_coords": [(1, -2)], "point_labels": [1]}, "point_coords[0] must lie on the photo"),
        ({"points": [(1, math.nan)]}, "points[0] must be 2 finite numbers (x, y), got (1, nan)"),
        ({"points": np.array([[[1, 2]]])}, "points[0] must be 2 finite numbers"),
        ({"points": "ab"}, "points must be a list of (x, y), got 'ab'"),
        ({"points": [(1, 2)], "labels": [1, 0]}, "labels must be a 0 or 1 for each of 1 points, got [1, 0]"),
        ({"points": [(1, 2)], "point_labels": [2]}, "point_labels must be a 0 or 1 for each of 1 points, got [2]"),
        ({"points": [(1, 2)], "labels": [math.nan]}, "labels must be a 0 or 1 for each of 1 points, got [nan]"),
        ({"points": [(1, 2)], "labels": ["a"]}, "labels must be a 0 or 1 for each of 1 points, got ['a']"),
        ({"labels": [1], "boxes": [1, 2, 30, 40]}, "labels must be a 0 or 1 for each of 0 points, got [1]"),
        ({"points": [(1, 2)], "labels": [0]}, "labels must hold a 1 where no box is given, got [0]"),
        ({"boxes": [50, 60, 20, 30]}, "boxes[0] must be corners (x0, y0, x1, y1) with x0 < x1 and y0 < y1, got (50.0,"),
        ({"box": [1, 2, 3]}, "box[0] must be 4 finite numbers (x0, y0, x1, y1), got 1"),
        ({"box": [1, 2, 3, math.inf]}, "box[0] must be 4 finite numbers"),
        ({"box": [200, 0, 300, 50]}, "box[0] must overlap the photo of 160x120 pixels, got (200.0, 0.0, 300.0, 50.0)"),
        ({"boxes": [[1, 2, 30, 40]] * 2}, "boxes must be one box, got 2; several take no points and no mask_input"),
        ({"boxes": [[1, 2, 30, 40]] * 2, "points": [(5, 5)], "multimask": False}, "boxes must be one box, got 2"),
        ({"points": [(1, 2)], "mask_input": np.ones((1, 64, 64))}, "mask_input must be finite logits (1, 256, 256)"),
        ({"points": [(1, 2)], "mask_input": SMALL * np.nan}, "mask_input must be finite logits (1, 256, 256)"),
        ({"points": [(1, 2)], "mask_input": -SMALL}, "mask_input must have logits above 0 on the photo, got none"),
        ({"points": [(1, 2)], "mask_input": "mask"}, "mask_input must be numbers, got 'mask'"),
    ],
)
def test_unusable_arguments(predictor: MaskPredictor, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        predictor.predict(**arguments)
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


def test_clicks_on_the_cup_and_the_spoon(shipped: MaskPredictor) -> None:
    """The opening of the cup is an ellipse, drawn by hand."""
    height, width = shipped.original_size
    y, x = np.mgrid[:height, :width]
    disc = ((x - 289) / 116) ** 2 + ((y - 112) / 97) ** 2 <= 1
    masks, scores, _ = shipped.predict(point_coords=np.array([[280, 110]]), point_labels=np.array([1]))
    assert len(masks) == 3 and masks[:, 110, 280].all() and (scores > 0).all()
    assert max(iou(mask, disc) for mask in masks) > 0.6
    (cup,), _, _ = shipped.predict(boxes=[173, 15, 405, 209], multimask=False)
    assert iou(cup, disc) > 0.6
    (spoon,), _, _ = shipped.predict([(365, 285)], multimask=False)
    assert spoon[285, 365] and 1000 < spoon.sum() < 20_000 and not spoon[100, 287]
    both, _, _ = shipped.predict([(280, 110), (365, 285)], [1, 0])
    assert both[:, 110, 280].all() and not both[:, 285, 365].any()

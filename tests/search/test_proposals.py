"""Proposals as boxes, COCO results and overlays; non-maximum suppression."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from sharpmask.data.images import load_image
from sharpmask.evaluation import load_results
from sharpmask.search.proposals import Proposals, suppress


def encode(mask: np.ndarray) -> dict[str, Any]:
    return dict(coco_mask.encode(np.asfortranarray(mask, np.uint8)))


def random_masks(seed: int, count: int, size: int = 24) -> list[np.ndarray]:
    """Rectangles, some of them alike, one pixel at least."""
    rng = np.random.default_rng(seed)
    masks = []
    for _ in range(count):
        mask = np.zeros((size, size), bool)
        y, x = rng.integers(0, size // 2, 2)
        h, w = rng.integers(1, size // 2, 2)
        mask[y : y + h, x : x + w] = True
        mask[y : y + h // 2, x : x + w // 2] &= rng.random() < 0.5
        mask[y + h - 1, x + w - 1] = True
        masks.append(mask)
    return masks


@pytest.fixture
def proposals() -> Proposals:
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    return Proposals(image, [encode(m) for m in random_masks(1, 5)], np.linspace(0.9, 0.1, 5).astype(np.float32))


def test_masks_and_boxes(proposals: Proposals) -> None:
    expected = random_masks(1, 5)
    assert len(proposals) == 5
    assert np.array_equal(proposals.masks(), expected)
    assert np.array_equal(list(proposals.iter_masks()), expected)
    for mask, (x, y, w, h) in zip(expected, proposals.boxes, strict=True):
        rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert (x, y, x + w, y + h) == (cols[0], rows[0], cols[-1] + 1, rows[-1] + 1)


def test_coco_results_survive_json_and_are_accepted(proposals: Proposals, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(proposals.to_coco(7)))
    truth = {"images": [{"id": 7, "height": 24, "width": 24}], "annotations": []}
    loaded = load_results(path, truth)
    assert [entry["image_id"] for entry in loaded] == [7] * 5
    assert [entry["score"] for entry in loaded] == pytest.approx(proposals.scores.tolist())
    for entry, mask, box in zip(loaded, random_masks(1, 5), proposals.boxes, strict=True):
        assert np.array_equal(coco_mask.decode(entry["segmentation"]), mask)
        assert entry["bbox"] == box.tolist()
        assert entry["category_id"] == 1


def test_an_overlay_shows_the_best_masks(proposals: Proposals, tmp_path: Path) -> None:
    proposals.save_overlay(tmp_path / "all.png")
    proposals.save_overlay(tmp_path / "none.png", limit=0)
    assert not np.array_equal(load_image(tmp_path / "all.png"), proposals.image)
    assert np.array_equal(load_image(tmp_path / "none.png"), proposals.image)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def filled_box(mask: np.ndarray) -> np.ndarray:
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = np.zeros_like(mask)
    box[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1] = True
    return box


limits = st.none() | st.floats(0.05, 0.95)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(0, 12), mask_nms=limits, box_nms=limits)
def test_suppression_is_the_greedy_one(seed: int, count: int, mask_nms: float | None, box_nms: float | None) -> None:
    masks = random_masks(seed, count)
    stay: list[int] = []
    for i, mask in enumerate(masks):
        by_mask = any(mask_nms is not None and iou(mask, masks[j]) > mask_nms for j in stay)
        by_box = any(box_nms is not None and iou(filled_box(mask), filled_box(masks[j])) > box_nms for j in stay)
        if not by_mask and not by_box:
            stay.append(i)
    scores = np.linspace(1, 0.5, count, dtype=np.float32)
    order, kept = suppress([encode(m) for m in masks], scores, mask_nms=mask_nms, box_nms=box_nms)
    assert order == stay
    assert np.array_equal(kept, scores[stay])


def test_suppression_of_many() -> None:
    one = encode(np.ones((4, 4), bool))
    scores = np.full(1000, 0.5, dtype=np.float32)
    assert suppress([one] * 1000, scores, mask_nms=0.8, box_nms=0.8)[0] == [0]
    assert suppress([one] * 1000, scores)[0] == list(range(1000))


def test_soft_suppression_lowers_scores() -> None:
    """The second overlaps the first by IoU 1/2, the third overlaps none, the fourth is the first again."""
    masks = np.zeros((4, 4, 8), dtype=bool)
    masks[0, :, :4] = masks[1, :, :2] = masks[2, :, 6:] = masks[3, :, :4] = True
    scores = np.array([0.9, 0.8, 0.5, 0.4], dtype=np.float32)
    order, kept = suppress([encode(m) for m in masks], scores, mask_nms=0.4, soft=True)
    assert order == [0, 2, 1], "the fourth has nothing left of its score"
    assert np.allclose(kept, [0.9, 0.5, 0.8 * 0.5])
    assert suppress([encode(m) for m in masks], scores, mask_nms=0.6, soft=True)[0] == [0, 1, 2]

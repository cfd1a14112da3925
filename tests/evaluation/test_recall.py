"""Average recall against plain pycocotools and by hand."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sharpmask.errors import DataError
from sharpmask.evaluation import CURVE_COUNTS, SIZES, average_recall

from .cases import HEIGHT, WIDTH, annotation, dataset, ellipse, random_case, rle


def plain_pycocotools(truth: dict[str, Any], results: list[dict[str, Any]], kind: str) -> np.ndarray:
    """AR [size, count] at CURVE_COUNTS by the textbook use of the COCO API."""
    coco = COCO()
    coco.dataset = copy.deepcopy(truth)
    coco.createIndex()
    run = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), kind)
    run.params.useCats = 0
    run.params.maxDets = list(CURVE_COUNTS)
    run.evaluate()
    run.accumulate()
    return run.eval["recall"][:, 0].mean(axis=0)


@pytest.mark.parametrize("kind", ["segm", "bbox"])
@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_plain_pycocotools(kind: Any, seed: int) -> None:
    truth, results = random_case(seed)
    if kind == "bbox":
        results = [{**entry, "bbox": coco_mask.toBbox(entry["segmentation"]).tolist()} for entry in results]
        results = [{key: value for key, value in entry.items() if key != "segmentation"} for entry in results]
    before = copy.deepcopy((truth, results))
    expected = plain_pycocotools(truth, results, kind)
    recall = average_recall(truth, results, kind=kind)
    for row, size in enumerate(SIZES):
        for count in (10, 100, 1000):
            assert recall.ar[count][size] == pytest.approx(expected[row, CURVE_COUNTS.index(count)], abs=1e-9)
        area = sum(
            (expected[row, i] + expected[row, i + 1]) / 2 * math.log10(CURVE_COUNTS[i + 1] / CURVE_COUNTS[i])
            for i in range(len(CURVE_COUNTS) - 1)
        )
        assert recall.auc[size] == pytest.approx(area / 3, abs=1e-9)
    assert [count for count, _ in recall.curve] == list(CURVE_COUNTS)
    assert [value for _, value in recall.curve] == pytest.approx(expected[0].tolist(), abs=1e-9)
    assert 0.1 < recall.ar[10]["all"] < recall.ar[100]["all"]  # the case is neither trivial nor saturated
    assert repr(before) == repr((truth, results))  # arguments are left as they were


def test_coco_object_and_boxes_of_masks() -> None:
    truth, results = random_case(2)
    coco = COCO()
    coco.dataset = copy.deepcopy(truth)
    coco.createIndex()
    assert average_recall(coco, results).to_json() == average_recall(truth, results).to_json()
    boxes = [{**entry, "bbox": coco_mask.toBbox(entry["segmentation"]).tolist()} for entry in results]
    of_boxes, of_masks = (average_recall(truth, entries, kind="bbox") for entries in (boxes, results))
    assert of_boxes.to_json() == of_masks.to_json()
    # A box beside a mask does not change how the mask counts.
    wrong = [{**entry, "bbox": [0.0, 0.0, 1.0, 1.0]} for entry in results]
    assert average_recall(truth, wrong).to_json() == average_recall(truth, results).to_json()


def test_by_hand() -> None:
    mask, elsewhere = np.zeros((2, HEIGHT, WIDTH), bool)
    mask[10:50, 10:60] = True  # 2000 px: medium
    elsewhere[100:140, 100:150] = True
    part = mask.copy()
    part[10:18] = False  # IoU .8: found at .5, .55, ... .8, that is 7 of 10 thresholds
    truth = dataset([annotation(1, 1, mask)])
    results = [
        {"image_id": 1, "score": 0.9, "segmentation": rle(elsewhere)},
        {"image_id": 1, "score": 0.5, "segmentation": rle(part)},
    ]
    recall = average_recall(truth, results, counts=(1, 2))
    assert recall.ar[1] == pytest.approx({"all": 0, "small": math.nan, "medium": 0, "large": math.nan}, nan_ok=True)
    assert recall.ar[2]["all"] == recall.ar[2]["medium"] == pytest.approx(0.7)
    # AR is 0 at 1 proposal and .7 from 2 on; on the logarithmic axis it is linear between.
    assert recall.auc["all"] == pytest.approx(0.7 * (1 - math.log10(2) / 3 / 2))
    assert json.loads(json.dumps(recall.to_json()))["ar"]["2"]["small"] is None
    assert average_recall(truth, results[1:]).auc["medium"] == pytest.approx(0.7)


def test_object_with_id_zero_and_foreign_categories_count() -> None:
    """Plain COCOeval takes id 0 for 'no match', and drops results of categories that the ground truth does not have."""
    mask = ellipse(60, 60, 30, 30)
    truth = dataset([annotation(0, 1, mask, category_id=7)])
    truth["categories"] = [{"id": 7, "name": "dog"}]
    recall = average_recall(truth, [{"image_id": 1, "category_id": 1, "score": 1.0, "segmentation": rle(mask)}])
    assert recall.ar[10]["all"] == 1


def test_images_without_results_and_crowds() -> None:
    mask, crowd = ellipse(60, 60, 30, 30), ellipse(140, 100, 30, 30)
    truth = dataset([annotation(1, 1, mask), annotation(2, 2, mask), annotation(3, 2, crowd, iscrowd=1)], images=2)
    hit = {"image_id": 1, "score": 1.0, "segmentation": rle(mask)}
    on_crowd = {"image_id": 2, "score": 1.0, "segmentation": rle(crowd)}
    assert average_recall(truth, [hit, on_crowd]).ar[10]["all"] == 0.5
    assert average_recall(truth, []).ar[1000]["all"] == 0
    assert math.isnan(average_recall(dataset([]), []).ar[10]["all"])


@pytest.mark.parametrize("kind", ["segm", "bbox"])
@pytest.mark.parametrize(
    "more",
    [{}, {"area": None, "bbox": None}, {"area": 0, "bbox": [0, 0, 0, 0]}, {"area": 1e6, "bbox": [0, 0, 190, 150]}],
)
def test_box_and_area_are_those_of_the_mask(kind: Any, more: dict[str, Any]) -> None:
    mask = ellipse(60, 60, 30, 30)
    truth = dataset([{"id": 1, "image_id": 1, "segmentation": rle(mask), **more}])
    recall = average_recall(truth, [{"image_id": 1, "score": 1.0, "segmentation": rle(mask)}], kind=kind)
    assert recall.ar[10] == pytest.approx({"all": 1, "small": math.nan, "medium": 1, "large": math.nan}, nan_ok=True)


def test_boxes_without_masks_or_areas() -> None:
    truth = dataset([{"id": 1, "image_id": 1, "bbox": [10, 10, 30, 40], "area": None}])
    recall = average_recall(truth, [{"image_id": 1, "score": 1.0, "bbox": [10, 10, 30, 40]}], kind="bbox")
    assert recall.ar[10]["medium"] == 1


def test_bad_arguments_name_the_culprit() -> None:
    mask = ellipse(60, 60, 30, 30)
    truth = dataset([annotation(1, 1, mask)])
    with pytest.raises(DataError, match="entry 0 has no 'segmentation'"):
        average_recall(truth, [{"image_id": 1, "score": 1.0, "bbox": [0, 0, 5, 5]}])
    with pytest.raises(DataError, match="entry 1 has unknown image_id 9"):
        results = [{"image_id": i, "score": 1.0, "segmentation": rle(mask)} for i in (1, 9)]
        average_recall(truth, results)
    for without in ({}, {"segmentation": []}, {"segmentation": None}):
        with pytest.raises(DataError, match="annotation 1 has no 'segmentation'"):
            average_recall(dataset([{"id": 1, "image_id": 1, "bbox": [0, 0, 5, 5], **without}]), [])
    with pytest.raises(DataError, match="'images'"):
        average_recall({"annotations": []}, [])
    with pytest.raises(ValueError, match="kind"):
        average_recall(truth, [], kind="keypoints")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="counts"):
        average_recall(truth, [], counts=(0, 10))

"""Average recall against plain pycocotools and by hand; results files; patch metrics."""

from __future__ import annotations

import copy
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.console import Console

from sharpmask.errors import DataError
from sharpmask.evaluation import (
    CURVE_COUNTS,
    SIZES,
    PatchMetrics,
    average_recall,
    load_results,
    mask_iou,
    mask_metrics,
    plot_recall,
    recall_table,
    score_accuracy,
)

HEIGHT, WIDTH = 150, 190


def ellipse(x: float, y: float, rx: float, ry: float) -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return ((columns - x) / rx) ** 2 + ((rows - y) / ry) ** 2 <= 1


def rle(mask: np.ndarray) -> dict[str, Any]:
    return coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))


def box(mask: np.ndarray) -> list[float]:
    return coco_mask.toBbox(rle(mask)).tolist()


def annotation(key: int, image: int, mask: np.ndarray, **more: Any) -> dict[str, Any]:
    area = float(mask.sum())
    entry = {"id": key, "image_id": image, "category_id": 1, "iscrowd": 0, "area": area, "bbox": box(mask)}
    return {**entry, "segmentation": rle(mask), **more}


def dataset(annotations: list[dict[str, Any]], images: int = 1, categories: int = 1) -> dict[str, Any]:
    return {
        "images": [{"id": i, "height": HEIGHT, "width": WIDTH} for i in range(1, images + 1)],
        "categories": [{"id": i, "name": f"c{i}"} for i in range(1, categories + 1)],
        "annotations": annotations,
    }


def random_case(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ellipses of all sizes (RLE, polygons, crowds, three classes) on 5 images, jittered copies as results:
    image 4 has objects and no results, image 5 results and no objects, image 1 more results than 100."""
    rng = np.random.default_rng(seed)
    annotations, results = [], []
    for image in range(1, 6):
        for number in range(rng.integers(3, 7)):
            radii = np.exp(rng.uniform(np.log(5), np.log(75), 2)) if number else np.array([70.0, 60.0])
            centre = rng.uniform((20, 20), (WIDTH - 20, HEIGHT - 20))
            mask = ellipse(*centre, *radii)
            more = {"category_id": int(rng.integers(1, 4)), "iscrowd": int(rng.random() < 0.15)}
            if rng.random() < 0.3 and not more["iscrowd"]:
                turns = np.linspace(0, 2 * np.pi, 20, endpoint=False)
                points = centre + radii * np.stack([np.cos(turns), np.sin(turns)], 1)
                more["segmentation"] = [points.ravel().tolist()]
            if image != 5:
                annotations.append(annotation(len(annotations) + 1, image, mask, **more))
            for _ in range(0 if image == 4 else 40 if image == 1 else 6):
                moved = ellipse(*(centre + rng.normal(0, 4, 2)), *(radii * np.exp(rng.normal(0, 0.15, 2))))
                score = round(float(rng.random()), 2)  # rounded: equal scores must occur
                results.append({"image_id": image, "category_id": 1, "score": score, "segmentation": rle(moved)})
    return dataset(annotations, images=5, categories=3), results


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
    # A box beside a mask does not change what the mask is worth.
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
    # AR is 0 at 1, .7 from 2 on, straight on the log axis between.
    assert recall.auc["all"] == pytest.approx(0.7 * (1 - math.log10(2) / 3 / 2))
    assert json.loads(json.dumps(recall.to_json()))["ar"]["2"]["small"] is None
    assert average_recall(truth, results[1:]).auc["medium"] == pytest.approx(0.7)


def test_object_with_id_zero_and_foreign_categories_count() -> None:
    """COCOeval alone takes id 0 for 'no match' and drops results of categories the ground truth has not."""
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


def test_bad_arguments_name_the_culprit() -> None:
    mask = ellipse(60, 60, 30, 30)
    truth = dataset([annotation(1, 1, mask)])
    with pytest.raises(DataError, match="entry 0 has no 'segmentation'"):
        average_recall(truth, [{"image_id": 1, "score": 1.0, "bbox": [0, 0, 5, 5]}])
    with pytest.raises(DataError, match="entry 1 has unknown image_id 9"):
        results = [{"image_id": i, "score": 1.0, "segmentation": rle(mask)} for i in (1, 9)]
        average_recall(truth, results)
    with pytest.raises(DataError, match="annotation 1 has no 'area'"):
        average_recall(dataset([{"id": 1, "image_id": 1, "segmentation": rle(mask)}]), [])
    with pytest.raises(DataError, match="'images'"):
        average_recall({"annotations": []}, [])
    with pytest.raises(ValueError, match="kind"):
        average_recall(truth, [], kind="keypoints")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="counts"):
        average_recall(truth, [], counts=(0, 10))


def good_entry() -> dict[str, Any]:
    encoded = rle(ellipse(60, 60, 30, 30))
    segmentation = {"size": [HEIGHT, WIDTH], "counts": encoded["counts"].decode()}
    return {"image_id": 1, "category_id": 3, "score": 0.5, "segmentation": segmentation, "extra": "dropped"}


def test_load_results_gives_what_evaluation_needs(tmp_path: Path) -> None:
    truth = dataset([annotation(1, 1, ellipse(60, 60, 30, 30))])
    path = tmp_path / "results.json"
    empty = rle(np.zeros((HEIGHT, WIDTH), bool))["counts"].decode()
    nothing = {**good_entry(), "segmentation": {"size": [HEIGHT, WIDTH], "counts": empty}}
    path.write_text(json.dumps([good_entry(), {"image_id": 1, "score": 1, "bbox": [1, 2, 3, 4]}, nothing]))
    results = load_results(path, truth)
    assert [sorted(entry) for entry in results][1] == ["bbox", "category_id", "image_id", "score"]
    assert average_recall(truth, [results[0], results[2]]).ar[10]["all"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 2}, "image_id 2"),
        ({"image_id": [1]}, "image_id"),
        ({"image_id": True}, "image_id"),
        ({"score": math.nan}, "score"),
        ({"score": "0.5"}, "score"),
        ({"score": 10**400}, "score"),
        ({"segmentation": [[1, 1, 5, 1, 5, 5]]}, "RLE"),
        ({"segmentation": {"size": [HEIGHT, WIDTH + 1], "counts": "0"}}, "size"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "0"}}, "runs"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}}, "compressed"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "é"}}, "compressed"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "ooo"}}, "RLE"),
        ({"segmentation": {"size": [HEIGHT, WIDTH]}}, "compressed"),
        ({"bbox": [0, 0, 5]}, "bbox"),
        ({"bbox": [0, 0, -5, 5]}, "bbox"),
        ({"bbox": [0, 0, 5, math.inf]}, "bbox"),
    ],
)
def test_load_results_refuses_bad_entries(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps([good_entry(), {**good_entry(), **change}]))
    with pytest.raises(DataError) as caught:
        load_results(path, dataset([]))
    text = str(caught.value)
    assert "results.json: entry 1:" in text and message in text and "\n" not in text and len(text) < 400


@pytest.mark.parametrize("content", [b"[{", b"\xff\xfe\x00", b"{}", b"[1]", b"[" * 100_000, b'[{"image_id": 1}]'])
def test_load_results_refuses_bad_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"results\.json"):
        load_results(path, dataset([]))
    with pytest.raises(DataError, match=r"nowhere\.json"):
        load_results(tmp_path / "nowhere.json", dataset([]))


def test_table_and_plot(tmp_path: Path) -> None:
    truth, results = random_case(3)
    recall = average_recall(truth, results)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(recall_table({"mine": recall}, paper=True))
    text = console.export_text()
    assert f"{100 * recall.ar[100]['all']:.1f}" in text and f"{100 * recall.auc['large']:.1f}" in text
    assert "35.5" in text and "other data" in text and "masks" in text
    plot_recall({"mine": recall}, tmp_path / "recall.png")
    assert (tmp_path / "recall.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["recall.png"]


def test_patch_metrics_by_hand() -> None:
    logits = torch.full((4, 2, 2), -1.0)
    targets = torch.zeros(4, 2, 2)
    logits[0, 0] = 0.0  # a logit of exactly 0 is foreground
    targets[0, 0] = 1  # IoU 1
    logits[1], targets[1, 0] = 1.0, 1  # IoU 1/2
    logits[2, 0, 0], targets[2, 1] = 1.0, 1  # IoU 0; patch 3: both empty, IoU 1
    assert mask_iou(logits, targets).tolist() == [1, 0.5, 0, 1]
    metrics = mask_metrics(logits, 2 * targets - 1)  # -1/+1 targets mean the same
    assert (metrics.patches, metrics.mean, metrics.median) == (4, 0.625, 0.75)
    assert (metrics.share_50, metrics.share_70) == (0.75, 0.5)
    assert mask_metrics(logits[:1], targets[:1], threshold=0.5).mean == 0
    assert score_accuracy(torch.tensor([2.0, -1.0, 0.5, 0.0]), torch.tensor([1, -1, -1, 1])) == 0.75


def test_patch_metrics_accumulate_to_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(10, 6, 6, generator=generator)
    targets = (logits + torch.randn(10, 6, 6, generator=generator)) > 0
    scores, labels = torch.randn(10, generator=generator), torch.randn(10, generator=generator) > 0
    metrics = PatchMetrics()
    for part in (slice(0, 3), slice(3, 3), slice(3, 10)):
        metrics.add_masks(logits[part], targets[part])
        metrics.add_scores(scores[part], labels[part])
    whole = mask_metrics(logits, targets)
    assert metrics.masks() == whole
    assert metrics.compute()["iou_mean"] == whole.mean
    assert metrics.compute()["score_accuracy"] == pytest.approx(score_accuracy(scores, labels))
    assert all(math.isnan(value) for value in PatchMetrics().compute().values())
    with pytest.raises(ValueError, match="logits"):
        metrics.add_masks(logits, targets[:, :3])

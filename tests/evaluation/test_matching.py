"""What is kept of each object: who finds it, and which proposal is nearest."""

from __future__ import annotations

import numpy as np
from pycocotools import mask as coco_mask

from sharpmask.evaluation import SIZES, average_recall, match_objects
from sharpmask.evaluation.matching import NEVER

from .cases import annotation, dataset, ellipse, random_case, rle


def test_nearest_proposals() -> None:
    truth, results = random_case(6)
    matches = match_objects(truth, results, limit=20)
    assert len(matches.objects) == sum(not entry["iscrowd"] for entry in truth["annotations"])
    for at, place in enumerate(matches.objects):
        entry = truth["annotations"][place]
        assert truth["images"][matches.photos[at]]["id"] == entry["image_id"]
        mask = entry["segmentation"]
        if isinstance(mask, list):
            mask = coco_mask.merge(
                coco_mask.frPyObjects(mask, *[truth["images"][0][side] for side in ("height", "width")])
            )
        assert matches.areas[at] == coco_mask.area(mask)
        of_photo = [number for number, each in enumerate(results) if each["image_id"] == entry["image_id"]]
        best = sorted(of_photo, key=lambda number: -results[number]["score"])[:20]
        ious = [float(coco_mask.iou([results[number]["segmentation"]], [mask], [0])[0, 0]) for number in best]
        largest = max(ious, default=0)
        assert matches.nearest_iou[:, at].tolist() == [largest, largest]
        rank, result = matches.nearest_rank[0, at], matches.nearest_result[0, at]
        assert (rank, result) == ((ious.index(largest), best[ious.index(largest)]) if largest else (-1, -1))


def test_ranks() -> None:
    truth, results = random_case(7)
    matches, recall = match_objects(truth, results), average_recall(truth, results, counts=(3, 1000))
    for row, size in enumerate(SIZES):
        ranks = matches.ranks[row][matches.counted[row]]
        assert np.isclose((ranks < 3).mean(), recall.ar[3][size])
        assert np.isclose((ranks != NEVER).mean(), recall.ar[1000][size])
    assert not matches.counted[1:].all(axis=0).any() and matches.counted[1:].any(axis=0).all()


def test_an_object_at_the_border_of_two_sizes_has_both() -> None:
    square = np.zeros((150, 190), bool)
    square[:32, :32] = True
    matches = match_objects(dataset([annotation(1, 1, square), annotation(2, 1, ellipse(90, 90, 9, 9))]), [])
    assert matches.counted[:, 0].tolist() == [True, True, True, False]
    assert (matches.ranks == NEVER).all() and (matches.nearest_result == -1).all()
    assert (
        match_objects(
            dataset([annotation(1, 1, square, iscrowd=1)]), [{"image_id": 1, "score": 1, "segmentation": rle(square)}]
        ).most
        == 1
    )

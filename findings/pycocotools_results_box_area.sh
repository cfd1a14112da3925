#!/usr/bin/env bash
# pycocotools 2.0.11: masks that come with their boxes are sorted into small, medium and large by the boxes.
#
# Expected: the figures of masks ("segm") by size do not depend on whether results also hold the masks' boxes. COCO's
# page on its results format says what an entry for masks has, and nothing of a box beside a mask.
# Behaviour: loadRes() asks for a box first, and takes the box's area as the result's. A wrong result counts as a false
# alarm in the class of its own size. So a wrong mask that is thin or slanting, with a large box, lowers the precision
# of large objects in place of small ones. Nothing warns. Leave `bbox` out where masks are measured.
#
# Seen: "average precision of small, large objects: masks alone 0.500, 1.000; with their boxes 1.000, 0.500".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet pycocotools==2.0.11 numpy==2.2.6
"$work/venv/bin/python" - <<'PYTHON'
import contextlib
import io

import numpy as np
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def rectangle(y, x, height, width):
    mask = np.zeros((300, 300), np.uint8, order="F")
    mask[y : y + height, x : x + width] = 1
    return coco.encode(mask)


small, large = rectangle(5, 5, 10, 10), rectangle(20, 100, 150, 150)
diagonal = coco.encode(np.asfortranarray(np.eye(300, dtype=np.uint8)))
truth = COCO()
truth.dataset = {
    "images": [{"id": 1, "width": 300, "height": 300}],
    "categories": [{"id": 1}],
    "annotations": [
        {"id": key, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": rle, "area": float(coco.area(rle))}
        for key, rle in enumerate((small, large), 1)
    ],
}


def precision(boxes):
    results = [
        {"image_id": 1, "category_id": 1, "segmentation": rle, "score": score}
        | ({"bbox": coco.toBbox(rle).tolist()} if boxes else {})
        for rle, score in ((diagonal, 0.9), (small, 0.8), (large, 0.7))
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [round(float(evaluation.stats[place]), 3) for place in (3, 5)]


alone, boxed = precision(boxes=False), precision(boxes=True)
shown = [", ".join(f"{value:.3f}" for value in values) for values in (alone, boxed)]
print("average precision of small, large objects: masks alone {}; with their boxes {}".format(*shown))
assert alone == boxed[::-1] and alone[0] < 0.6 and alone[1] == 1, "the behaviour has changed"
PYTHON

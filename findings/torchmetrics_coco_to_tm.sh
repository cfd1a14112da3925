#!/usr/bin/env bash
# torchmetrics 1.9.0 and pycocotools 2.0.11: COCO files read by coco_to_tm() have other figures.
#
# Expected: coco_to_tm() reads annotations and results of COCO "in the input format of this metric", as it documents. So
# the same object's update() and compute() give the figures of pycocotools on these files.
# Behaviour: boxes stay x, y, width, height, while the metric's default is the two corners: only
# MeanAveragePrecision(box_format="xywh") reads them as they are. And photos without annotations are left out with all
# results in them, which are false alarms.
#
# Seen: "results equal to the objects: precision 0.00, as xywh 1.00, by pycocotools 1.00; and a false alarm in a photo
# without objects: as xywh 1.00, by pycocotools 0.50".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 torchmetrics==1.9.0 pycocotools==2.0.11 \
    numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import contextlib
import io
import json
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchmetrics.detection import MeanAveragePrecision

cup = {"category_id": 1, "bbox": [50, 50, 20, 20]}
truth = {
    "images": [{"id": number, "width": 100, "height": 100} for number in (1, 2)],
    "categories": [{"id": 1, "name": "cup"}],
    "annotations": [cup | {"id": 1, "image_id": 1, "area": 400, "iscrowd": 0}],
}
right = [cup | {"image_id": 1, "score": 0.5}]
alarm = [cup | {"image_id": 2, "score": 0.9}]


def by_torchmetrics(results, **options):
    Path("truth.json").write_text(json.dumps(truth))
    Path("results.json").write_text(json.dumps(results))
    metric = MeanAveragePrecision(**options)
    metric.update(*metric.coco_to_tm("results.json", "truth.json", iou_type="bbox"))
    return float(metric.compute()["map"])


def by_pycocotools(results):
    with contextlib.redirect_stdout(io.StringIO()):
        loaded = COCO()
        loaded.dataset = truth
        loaded.createIndex()
        evaluation = COCOeval(loaded, loaded.loadRes([dict(entry) for entry in results]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


seen = [
    by_torchmetrics(right),
    by_torchmetrics(right, box_format="xywh"),
    by_pycocotools(right),
    by_torchmetrics(right + alarm, box_format="xywh"),
    by_pycocotools(right + alarm),
]
print(
    "results equal to the objects: precision {:.2f}, as xywh {:.2f}, by pycocotools {:.2f}; and a false alarm in a "
    "photo without objects: as xywh {:.2f}, by pycocotools {:.2f}".format(*seen)
)
assert np.allclose(seen, [0, 1, 1, 1, 0.5]), "the behaviour has changed"
PYTHON

#!/usr/bin/env bash
# torchmetrics 1.9.0 and pycocotools 2.0.11: false alarms in photos without objects do not count, for masks.
#
# Expected: MeanAveragePrecision(iou_type="segm") counts a mask in a photo without objects as a false alarm, as it does
# for boxes, and as pycocotools does for masks.
# Behaviour: a photo whose target has no masks is left out when the targets are written as COCO, and only the photos of
# the targets are evaluated. So whatever a model finds in empty photos, the figures are those without them. Nothing
# warns. With boxes beside the masks, iou_type=("bbox", "segm"), the photo stays, and the figure is right.
#
# Seen: "object found at score 0.5, a false alarm at 0.9 in an empty photo: precision of boxes 0.50, masks 1.00, masks
# beside boxes 0.50, masks by pycocotools 0.50".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 torchmetrics==1.9.0 pycocotools==2.0.11 \
    numpy==2.4.6
"$work/venv/bin/python" - <<'PYTHON'
import contextlib
import io

import numpy as np
import torch
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchmetrics.detection import MeanAveragePrecision

square = torch.zeros(40, 40, dtype=torch.bool)
square[5:20, 5:20] = True
SCORES = (0.5, 0.9)


def entry(number, **score):
    return {
        "masks": square.expand(number, -1, -1),
        "boxes": torch.tensor([[5.0, 5, 20, 20]] * number).reshape(number, 4),
        "labels": torch.ones(number, dtype=torch.long),
        **score,
    }


def by_torchmetrics(kinds):
    metric = MeanAveragePrecision(iou_type=kinds)
    metric.update([entry(1, scores=torch.tensor([score])) for score in SCORES], [entry(1), entry(0)])
    found = metric.compute()
    return float(found["segm_map" if len(kinds) == 2 else "map"])


def by_pycocotools():
    rle = coco.encode(np.asfortranarray(square.numpy(), np.uint8))
    shape = {"category_id": 1, "segmentation": rle}
    truth = COCO()
    truth.dataset = {
        "images": [{"id": number, "width": 40, "height": 40} for number in (1, 2)],
        "categories": [{"id": 1, "name": "cup"}],
        "annotations": [shape | {"id": 1, "image_id": 1, "area": 225.0, "bbox": [5, 5, 15, 15], "iscrowd": 0}],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        results = [shape | {"image_id": number, "score": score} for number, score in enumerate(SCORES, 1)]
        evaluation = COCOeval(truth, truth.loadRes(results), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


seen = {
    "boxes": by_torchmetrics(("bbox",)),
    "masks": by_torchmetrics(("segm",)),
    "masks beside boxes": by_torchmetrics(("bbox", "segm")),
    "masks by pycocotools": by_pycocotools(),
}
print(
    "object found at score 0.5, a false alarm at 0.9 in an empty photo: precision of "
    + ", ".join(f"{name} {value:.2f}" for name, value in seen.items())
)
assert np.allclose(list(seen.values()), [0.5, 1, 0.5, 0.5]), "the behaviour has changed"
PYTHON

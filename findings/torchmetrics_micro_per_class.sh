#!/usr/bin/env bash
# torchmetrics 1.9.0: figures per class, asked for in addition, change the class-agnostic figures of masks.
#
# Expected: MeanAveragePrecision(average="micro") takes all objects as of one class. class_metrics=True adds figures per
# class and leaves the others as they are.
# Behaviour: with iou_type=("bbox", "segm"), boxes are evaluated first; for their figures per class the data are written
# anew with their classes, and these data then serve for the masks too. So the figures of masks are those
# with classes, under the same names. Measure boxes and masks by two metrics.
#
# Seen: "2 objects found with each other's class: boxes 1.00, masks 1.00; with figures per class: boxes 1.00, masks
# 0.00; masks alone, with figures per class: 1.00".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 torchmetrics==1.9.0 pycocotools==2.0.11 \
    numpy==2.4.6
"$work/venv/bin/python" - <<'PYTHON'
import torch
from torchmetrics.detection import MeanAveragePrecision

BOTH = ("bbox", "segm")
masks = torch.zeros(2, 40, 40, dtype=torch.bool)
masks[0, 5:20, 2:17] = masks[1, 5:20, 22:37] = True
shapes = {"masks": masks, "boxes": torch.tensor([[2.0, 5, 17, 20], [22, 5, 37, 20]])}
found = shapes | {"labels": torch.tensor([2, 1]), "scores": torch.tensor([0.9, 0.8])}


def recall(kinds, **options):
    metric = MeanAveragePrecision(iou_type=kinds, average="micro", **options)
    metric.update([found], [shapes | {"labels": torch.tensor([1, 2])}])
    return [float(value) for name, value in metric.compute().items() if name.endswith("mar_100")]


plain, per_class = recall(BOTH), recall(BOTH, class_metrics=True)
alone = recall(("segm",), class_metrics=True)
print(
    "2 objects found with each other's class: boxes {:.2f}, masks {:.2f}; with figures per class: boxes {:.2f}, masks "
    "{:.2f}; masks alone, with figures per class: {:.2f}".format(*plain, *per_class, *alone)
)
assert plain == [1, 1] and per_class == [1, 0] and alone == [1], "the behaviour has changed"
PYTHON

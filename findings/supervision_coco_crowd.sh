#!/usr/bin/env bash
# supervision 0.31.2: an object of several parts, or with a hole, is written to COCO as a crowd.
#
# Expected: DetectionDataset.as_coco() writes one object as "iscrowd": 0, with a polygon a part or an RLE. In COCO a crowd
# is a region of many objects: evaluators neither count it nor punish what lies in it, and trainers leave it out.
# Behaviour: a mask that is no single polygon becomes an RLE with "iscrowd": 1, so the object silently drops out of
# training and of recall. Half-hidden objects, which have parts, are the usual case.
#
# Seen: "one part: iscrowd 0; two parts: iscrowd 1; with a hole: iscrowd 1".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet supervision==0.31.2
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import json

import numpy as np
import supervision as sv
from PIL import Image

Image.new("RGB", (100, 80)).save("photo.jpg")
masks = np.zeros((3, 80, 100), bool)
masks[:, 10:40, 10:40] = True
masks[1, 50:70, 60:90] = True
masks[2, 20:30, 20:30] = False
objects = sv.Detections(xyxy=sv.mask_to_xyxy(masks), mask=masks, class_id=np.zeros(3, int))
dataset = sv.DetectionDataset(classes=["thing"], images=["photo.jpg"], annotations={"photo.jpg": objects})
dataset.as_coco(images_directory_path="out", annotations_path="coco.json")
crowd = [a["iscrowd"] for a in json.load(open("coco.json"))["annotations"]]
print("one part: iscrowd {}; two parts: iscrowd {}; with a hole: iscrowd {}".format(*crowd))
assert crowd == [0, 1, 1], "the behaviour has changed"
PYTHON

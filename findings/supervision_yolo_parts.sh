#!/usr/bin/env bash
# supervision 0.31.2: an object of two parts becomes two objects in a YOLO segmentation folder.
#
# Expected: DetectionDataset.as_yolo() writes one line an object (the format joins parts by a line that runs there and
# back), as it does for an object with a hole; or says that parts are lost.
# Behaviour: a line a part. Read back, a photo of 2 objects has 3, each part with an object's rights: a model trained
# on it learns parts, and recall counts an object that is found whole as two misses.
#
# Seen: "2 objects written, 3 read: 900, 680, 600 pixels".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet supervision==0.31.2
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import numpy as np
import supervision as sv
from PIL import Image

Image.new("RGB", (100, 80)).save("photo.jpg")
masks = np.zeros((2, 80, 100), bool)
masks[0, 10:40, 10:40] = True
masks[1, 50:70, 60:90] = True
masks[1, 10:50, 60:80] = True
masks[1, 44:50] = False
objects = sv.Detections(xyxy=sv.mask_to_xyxy(masks), mask=masks, class_id=np.zeros(2, int))
dataset = sv.DetectionDataset(classes=["thing"], images=["photo.jpg"], annotations={"photo.jpg": objects})
dataset.as_yolo(images_directory_path="images", annotations_directory_path="labels", data_yaml_path="data.yaml")
back = sv.DetectionDataset.from_yolo("images", "labels", "data.yaml", force_masks=True)
((_, _, found),) = list(back)
sizes = [int(mask.sum()) for mask in found.mask]
print(f"2 objects written, {len(found)} read: {', '.join(map(str, sizes))} pixels")
assert len(found) == 3, "the behaviour has changed"
PYTHON

#!/usr/bin/env bash
# label_convert 0.3.0: polygons of labelme become no polygons of COCO, and circles become squares.
#
# Expected: LabelmeToCOCO writes a polygon as COCO's format has it: a list of polygons, each a flat list x, y, x, y,
# ...; and a circle as a polygon of many corners, or not at all.
# Behaviour: a polygon is written as its list of points, [[x, y], [x, y], ...], which COCO reads as so many polygons of
# one point each. pycocotools raises TypeError ("Argument 'bb' has incorrect type (expected numpy.ndarray, got list)")
# when it is first drawn, perhaps in the middle of a training. The circle's mask is its box, 27 % larger. With each list
# joined, the polygons are right.
#
# Seen: "polygon: written as 4 lists of 2 numbers, TypeError; joined: 600 of 600 pixels; circle of 1257: 1600 pixels".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
# opencv-python, which it asks for, needs a desktop's libraries; the other build is the same without windows.
"$work/venv/bin/pip" install --quiet --no-deps label_convert==0.3.0
"$work/venv/bin/pip" install --quiet opencv-python-headless==4.14.0.94 pillow pyyaml tqdm pycocotools==2.0.11 numpy==2.4.6
mkdir "$work/photos"
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import json
import math
from pathlib import Path

from label_convert.labelme_to_coco import LabelmeToCOCO
from PIL import Image
from pycocotools import mask as coco

Image.new("RGB", (100, 80)).save("photos/a.jpg")
drawn = {"polygon": [[10, 10], [40, 10], [40, 30], [10, 30]], "circle": [[70, 40], [90, 40]]}
shapes = [
    {"label": kind, "points": points, "shape_type": kind, "group_id": None, "flags": {}} for kind, points in drawn.items()
]
size = {"imageHeight": 80, "imageWidth": 100}
labels = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": "a.jpg", "imageData": None, **size}
Path("photos/a.json").write_text(json.dumps(labels))
LabelmeToCOCO("photos", "out", val_ratio=0)()
polygon, circle = (
    entry["segmentation"]
    for entry in json.loads(Path("out/annotations/instances_train2017.json").read_text())["annotations"]
)


def pixels(segmentation):
    try:
        return int(coco.area(coco.merge(coco.frPyObjects(segmentation, 80, 100))))
    except TypeError as error:
        return type(error).__name__


refused, joined, square = pixels(polygon), pixels([sum(polygon, [])]), pixels(circle)
print(
    f"polygon: written as {len(polygon)} lists of {len(polygon[0])} numbers, {refused}; joined: {joined} of 600 pixels; "
    f"circle of {math.pi * 20**2:.0f}: {square} pixels"
)
assert (polygon, refused, joined, square) == (drawn["polygon"], "TypeError", 600, 1600), "the behaviour has changed"
PYTHON

#!/usr/bin/env bash
# sahi 0.12.8 and pycocotools 2.0.11: a mask with a hole is written to COCO filled, and with an area of neither.
#
# Expected: an ObjectPrediction that to_coco_prediction() or to_coco_annotation() writes has the pixels of its mask, and
# their number as `area`. A hole is possible in COCO by an RLE, or by polygons around it.
# Behaviour: the outline of a hole becomes a polygon beside the outer one. In COCO the polygons of an object add up, so
# pycocotools reads a full square. sahi itself fills where an odd number of polygons lies, which hides it. The area is
# that between the outlines, which run through centres of pixels, so evaluators sort the object by a third figure. Write
# masks as RLE.
#
# Seen: "a square ring of 1200 pixels: sahi reads 1200, its area says 1082, pycocotools reads 1521".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
# Its other dependencies serve its models and its command line; opencv-python needs a desktop's libraries.
"$work/venv/bin/pip" install --quiet --no-deps sahi==0.12.8
"$work/venv/bin/pip" install --quiet opencv-python-headless==4.14.0.94 shapely==2.2.0 pillow pyyaml requests tqdm \
    pycocotools==2.0.11 numpy==2.4.6
"$work/venv/bin/python" - <<'PYTHON'
import numpy as np
from pycocotools import mask as coco
from sahi.prediction import ObjectPrediction
from sahi.utils.cv import get_coco_segmentation_from_bool_mask

ring = np.zeros((60, 60), bool)
ring[10:50, 10:50] = True
ring[20:40, 20:40] = False
found = ObjectPrediction(
    category_id=0,
    category_name="ring",
    score=0.9,
    segmentation=get_coco_segmentation_from_bool_mask(ring),
    shift_amount=[0, 0],
    full_shape=[60, 60],
)
own = int(found.mask.bool_mask.sum())
entry = found.to_coco_prediction(image_id=1).json
polygons = [[float(value) for value in polygon] for polygon in entry["segmentation"]]
read = int(coco.area(coco.merge(coco.frPyObjects(polygons, 60, 60))))
area = found.to_coco_annotation().json["area"]
print(f"a square ring of {ring.sum()} pixels: sahi reads {own}, its area says {area}, pycocotools reads {read}")
assert (own, area, read) == (1200, 1082, 1521), "the behaviour has changed"
PYTHON

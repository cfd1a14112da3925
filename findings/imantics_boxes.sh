#!/usr/bin/env bash
# imantics 0.1.12: boxes in YOLO's format say where the corner is, not the centre, and all boxes are a pixel too small.
#
# Expected: a mask's annotation gives by yolo() "class x y width height", x and y those of the box's centre, and by
# coco() the mask's box.
# Behaviour: x and y are those of the upper left corner, so each box lies up and left of its object by half its size.
# Width and height, here and in COCO, count from the first to the last pixel without the last one. Nothing warns, and
# the numbers are in range. Compute boxes with pycocotools' toBbox() from the mask.
#
# Seen: "40x20 pixels at 20, 10 in a photo of 100x80: YOLO 0.200 0.125 0.390 0.237, right is 0.400 0.250 0.400 0.250,
# IoU 0.14; COCO 20 10 39 19".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
# opencv-python, which it asks for, needs a desktop's libraries; the other build is the same without windows.
"$work/venv/bin/pip" install --quiet --no-deps imantics==0.1.12
"$work/venv/bin/pip" install --quiet opencv-python-headless==4.14.0.94 lxml xmljson numpy==2.4.6
"$work/venv/bin/python" - <<'PYTHON'
import numpy as np
from imantics import Annotation, Category, Image, Mask

WIDTH, HEIGHT = 100, 80
mask = np.zeros((HEIGHT, WIDTH), bool)
mask[10:30, 20:60] = True
photo = Image(image_array=np.zeros((HEIGHT, WIDTH, 3), np.uint8), path="a.jpg")
annotation = Annotation.from_mask(Mask(mask), image=photo, category=Category("cup"))
found = [float(value) for value in annotation.yolo().split()[1:]]
box = [int(value) for value in annotation.coco(include=False)["bbox"]]
right = [40 / WIDTH, 20 / HEIGHT, 40 / WIDTH, 20 / HEIGHT]


def corners(box):
    x, y, width, height = box
    return np.array([x - width / 2, y - height / 2]), np.array([x + width / 2, y + height / 2])


(low, high), (low_right, high_right) = corners(found), corners(right)
common = np.clip(np.minimum(high, high_right) - np.maximum(low, low_right), 0, None).prod()
iou = common / (found[2] * found[3] + right[2] * right[3] - common)


def shown(values):
    return " ".join(f"{value:.3f}" for value in values)


print(
    f"40x20 pixels at 20, 10 in a photo of 100x80: YOLO {shown(found)}, right is {shown(right)}, IoU {iou:.2f}; "
    f"COCO {' '.join(map(str, box))}"
)
assert np.allclose(found, [0.2, 0.125, 0.39, 0.2375]) and box == [20, 10, 39, 19], "the behaviour has changed"
PYTHON

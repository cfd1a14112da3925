#!/usr/bin/env bash
# pycocotools 2.0.11 with numpy 2: area() of more than 255 masks fails.
#
# Expected: area() takes any number of masks, as toBbox(), iou() and decode() do, and as it did with numpy 1.
# Behaviour: 255 masks are fine. From 256 on it raises OverflowError: the number of masks is put where numpy 2 no longer
# lets a Python integer wrap around. Proposals, 1000 of a photo, meet it at once.
#
# Seen: "255 masks: 255 areas; 256 masks: OverflowError: Python integer 256 out of bounds for uint8".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet pycocotools==2.0.11 numpy==2.2.6
"$work/venv/bin/python" - <<'PYTHON'
import numpy as np
from pycocotools import mask as coco

mask = coco.encode(np.ones((4, 4), np.uint8, order="F"))
assert len(coco.toBbox([mask] * 256)) == 256
few = len(coco.area([mask] * 255))
try:
    coco.area([mask] * 256)
except OverflowError as error:
    print(f"255 masks: {few} areas; 256 masks: OverflowError: {error}")
else:
    raise SystemExit("the behaviour has changed: 256 masks are taken")
PYTHON

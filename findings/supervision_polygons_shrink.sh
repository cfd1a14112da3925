#!/usr/bin/env bash
# supervision 0.31.2 and pycocotools 2.0.11: a mask written as a COCO polygon loses its last row and column.
#
# Expected: what supervision writes as a COCO polygon, pycocotools, which defines the format, reads as the same pixels.
# Behaviour: supervision's polygons run through the centres of the outermost pixels, numbered from 0. In COCO, coordinates
# are those of pixel corners, so a square of n pixels is read as one of n - 1. A tenth of a small object's side is a
# fifth of its area. Reading the polygon back by supervision hides it.
#
# Seen: "squares of 3, 10, 30 pixels are read as 4 of 9, 81 of 100, 841 of 900 pixels".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet supervision==0.31.2 pycocotools==2.0.11
"$work/venv/bin/python" - <<'PYTHON'
import numpy as np
import supervision as sv
from pycocotools import mask as coco

read = []
for side in (3, 10, 30):
    mask = np.zeros((60, 60), bool)
    mask[5 : 5 + side, 5 : 5 + side] = True
    (polygon,) = sv.mask_to_polygons(mask)
    assert (sv.polygon_to_mask(polygon, (60, 60)) > 0).sum() == side**2
    (rle,) = coco.frPyObjects([polygon.astype(float).flatten().tolist()], 60, 60)
    read.append(f"{coco.area(rle)} of {side**2}")
print(f"squares of 3, 10, 30 pixels are read as {', '.join(read)} pixels")
assert read == ["4 of 9", "81 of 100", "841 of 900"], "the behaviour has changed"
PYTHON

#!/usr/bin/env bash
# pycocotools 2.0.11 with numpy 2: a list of mask results can be loaded once.
#
# Expected: COCO.loadRes() reads a list of results and leaves it as it is, so one list serves two evaluations (against
# two sets of annotations, or as masks before and after a filter by score).
# Behaviour: the entries of the caller's list get `bbox`, `area`, `id` and `iscrowd`. Next time, the box makes the list
# one of box results. With numpy 2 the question whether the box is empty compares an array with [] and raises
# ValueError: "operands could not be broadcast together with shapes (4,) (0,)". Give loadRes a copy of each entry.
#
# Seen: "first time: 2 results; keys added: area, bbox, id, iscrowd; second time: ValueError; copies: 2 results".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet pycocotools==2.0.11 numpy==2.2.6
"$work/venv/bin/python" - <<'PYTHON'
import contextlib
import io

import numpy as np
from pycocotools import mask as coco
from pycocotools.coco import COCO

truth = COCO()
truth.dataset = {"images": [{"id": 1, "width": 8, "height": 8}], "categories": [{"id": 1}], "annotations": []}


def load(results):
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        return f"{len(truth.loadRes(results).anns)} results"


rle = coco.encode(np.eye(8, dtype=np.uint8, order="F"))
given = [{"image_id": 1, "category_id": 1, "segmentation": rle, "score": score} for score in (0.9, 0.8)]
results = [dict(entry) for entry in given]
first = load(results)
added = ", ".join(sorted(results[0].keys() - given[0].keys()))
try:
    second = load(results)
except ValueError as error:
    second = type(error).__name__
copies = [load([dict(entry) for entry in given]) for _ in range(2)][1]
print(f"first time: {first}; keys added: {added}; second time: {second}; copies: {copies}")
assert (added, second) == ("area, bbox, id, iscrowd", "ValueError"), "the behaviour has changed"
PYTHON

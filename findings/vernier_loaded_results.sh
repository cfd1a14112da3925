#!/usr/bin/env bash
# vernier 0.5.4 and pycocotools 2.0.11: the drop-in evaluator refuses mask results as pycocotools loads them.
#
# Expected: vernier.COCOeval takes the place of pycocotools' COCOeval by a change of one import, as its README says, and
# gives the same figures as pycocotools 2.0.11.
# Behaviour: it does so for boxes. For masks, loadRes() notes the box of each result as an array of numpy, and vernier
# takes only sequences: "detections[0].bbox: expected a 4-element sequence: 'ndarray' object is not an instance of
# 'Sequence'". So the usual lines for masks fail. With the arrays made lists the figures are those of pycocotools.
#
# Seen: "boxes: 1.0; masks: ValueError; masks with boxes as lists: 1.0".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet vernier==0.5.4 pycocotools==2.0.11 numpy==2.2.6
"$work/venv/bin/python" - <<'PYTHON'
import contextlib
import io

import numpy as np
import vernier
from pycocotools import mask as coco
from pycocotools.coco import COCO

rle = coco.encode(np.asfortranarray(np.tri(40, dtype=np.uint8)))
rle["counts"] = rle["counts"].decode()
common = {"image_id": 1, "category_id": 1}
box = coco.toBbox(rle).tolist()
truth = COCO()
truth.dataset = {
    "images": [{"id": 1, "width": 40, "height": 40}],
    "categories": [{"id": 1, "name": "cup"}],
    "annotations": [common | {"id": 1, "segmentation": rle, "bbox": box, "area": float(coco.area(rle)), "iscrowd": 0}],
}


def precision(kind, shape, lists=False):
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        results = truth.loadRes([common | {"score": 0.9} | shape])
        for entry in results.anns.values() if lists else ():
            entry["bbox"] = [float(value) for value in entry["bbox"]]
        try:
            evaluation = vernier.COCOeval(truth, results, kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        except ValueError as error:
            assert "ndarray" in str(error)
            return type(error).__name__
    return round(float(evaluation.stats[0]), 3)


seen = {
    "boxes": precision("bbox", {"bbox": box}),
    "masks": precision("segm", {"segmentation": rle}),
    "masks with boxes as lists": precision("segm", {"segmentation": rle}, lists=True),
}
print("; ".join(f"{name}: {value}" for name, value in seen.items()))
assert list(seen.values()) == [1, "ValueError", 1], "the behaviour has changed"
PYTHON

#!/usr/bin/env bash
# globox 2.9.0 and pycocotools 2.0.11: the first object of a data set that globox wrote is never found.
#
# Expected: results equal to the objects have an average precision and recall of 1 by pycocotools, as they have by
# globox, which documents that it writes COCO and has COCO's measures.
# Behaviour: globox numbers annotations from 0. pycocotools notes for each result the id of the object that it found,
# and reads 0 as "none": the result counts as a false alarm and the object as missed. Nothing in the format says that an
# id must not be 0. faster-coco-eval 1.8.0 computes the same with a warning; hotcoco 1.3.0 and vernier 0.5.4 count the
# object. Number annotations from 1.
#
# Seen: "ids from 0: AP 0.442, AR 0.667; numbered from 1: AP 1.000, AR 1.000; by globox: AP 1.000, AR 1.000".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet globox==2.9.0 pycocotools==2.0.11 numpy==2.2.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import contextlib
import io
import json
from pathlib import Path

import globox
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

LEFT = (10, 60, 110)


def annotated(**score):
    boxes = [globox.BoundingBox(label="cup", xmin=x, ymin=10, xmax=x + 30, ymax=50, **score) for x in LEFT]
    return globox.AnnotationSet([globox.Annotation("photo.jpg", (200, 100), boxes)])


def by_pycocotools(data):
    results = [
        {key: entry[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9 - 0.1 * place}
        for place, entry in enumerate(data["annotations"])
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = data
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[0], evaluation.stats[8]


annotated().save_coco(Path("coco.json"), auto_ids=True)
data = json.loads(Path("coco.json").read_text())
assert [entry["id"] for entry in data["annotations"]] == [0, 1, 2]
from_0 = by_pycocotools(data)
for entry in data["annotations"]:
    entry["id"] += 1
from_1 = by_pycocotools(data)
own = globox.COCOEvaluator(ground_truths=annotated(), predictions=annotated(confidence=0.9))
by_globox = own.ap(), own.ar_100()
seen = {"ids from 0": from_0, "numbered from 1": from_1, "by globox": by_globox}
print("; ".join(f"{name}: AP {ap:.3f}, AR {ar:.3f}" for name, (ap, ar) in seen.items()))
assert from_1 == by_globox == (1, 1) and abs(from_0[1] - 2 / 3) < 1e-6, "the behaviour has changed"
PYTHON

#!/usr/bin/env bash
# labelme2coco 0.2.6: the parts of one object become objects.
#
# Expected: in labelme, shapes of one label and one "group_id" are parts of one object (labelme's own converters to COCO
# and VOC join them). A converter to COCO writes one annotation with a polygon a part.
# Behaviour: "group_id" is not read. Each part is an annotation of its own.
#
# Seen: "1 object of 2 parts in labelme, 2 objects in COCO".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet labelme2coco==0.2.6
mkdir "$work/photos"
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import json
from pathlib import Path

import labelme2coco
from PIL import Image

Image.new("RGB", (100, 80)).save("photos/a.jpg")
squares = [[[x, 10], [x + 20, 10], [x + 20, 30], [x, 30]] for x in (10, 50)]
shapes = [
    {"label": "dog", "points": square, "group_id": 1, "shape_type": "polygon", "flags": {}} for square in squares
]
size = {"imageHeight": 80, "imageWidth": 100}
labels = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": "a.jpg", "imageData": None, **size}
Path("photos/a.json").write_text(json.dumps(labels))
labelme2coco.convert("photos", "out")
annotations = json.loads(Path("out/dataset.json").read_text())["annotations"]
print(f"1 object of 2 parts in labelme, {len(annotations)} objects in COCO")
assert len(annotations) == 2, "the behaviour has changed"
PYTHON

#!/usr/bin/env bash
# datumaro 1.13.12 and pycocotools 2.0.11: masks that are read from COCO and written to COCO are others, or crowds.
#
# Expected: a dataset that is imported and exported as "coco_instances" has the same objects: an RLE with "iscrowd": 0,
# as COCO's tools read it, stays that mask of that one object.
# Behaviour: by default the mask becomes polygons around its outer edge, through the centres of pixels: holes are
# filled, a row and a column go, and an object of two columns has no pixel left. With segmentation_mode="mask" the
# pixels are right, and each object is a crowd, which trainers leave out and evaluators do not count.
#
# Seen: "default: ring 1521 of 1200 pixels, pole 0 of 60, crowds 0 of 2; segmentation_mode mask: ring 1200 of 1200
# pixels, pole 60 of 60, crowds 2 of 2".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet datumaro==1.13.12 pycocotools==2.0.11 numpy==2.4.6
mkdir -p "$work/data/annotations" "$work/data/images/train"
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import json
from pathlib import Path

import datumaro
import numpy as np
from PIL import Image
from pycocotools import mask as coco

ring, pole = np.zeros((2, 80, 100), np.uint8)
ring[10:50, 10:50] = 1
ring[20:40, 20:40] = 0
pole[10:40, 70:72] = 1
masks = {"ring": ring, "pole": pole}
annotations = []
for number, mask in enumerate(masks.values(), 1):
    rle = coco.encode(np.asfortranarray(mask))
    box, area = coco.toBbox(rle).tolist(), int(coco.area(rle))
    rle["counts"] = rle["counts"].decode()
    common = {"id": number, "image_id": 1, "category_id": 1, "iscrowd": 0}
    annotations.append(common | {"segmentation": rle, "bbox": box, "area": area})
Image.new("RGB", (100, 80)).save("data/images/train/a.png")
size = {"width": 100, "height": 80}
document = {
    "images": [{"id": 1, "file_name": "a.png", **size}],
    "categories": [{"id": 1, "name": "cup"}],
    "annotations": annotations,
}
Path("data/annotations/instances_train.json").write_text(json.dumps(document))


def pixels(segmentation):
    if not segmentation:
        return 0
    rle = coco.frPyObjects(segmentation, 80, 100)
    return int(coco.area(coco.merge(rle) if isinstance(rle, list) else rle))


def written(folder, **options):
    datumaro.Dataset.import_from("data", "coco_instances").export(folder, "coco_instances", **options)
    found = json.loads(Path(folder, "annotations/instances_train.json").read_text())["annotations"]
    found.sort(key=lambda entry: entry["id"])
    return *(pixels(entry["segmentation"]) for entry in found), sum(entry["iscrowd"] for entry in found)


default, as_masks = written("default"), written("masks", segmentation_mode="mask")
line = "ring {} of 1200 pixels, pole {} of 60, crowds {} of 2"
print(f"default: {line.format(*default)}; segmentation_mode mask: {line.format(*as_masks)}")
assert default == (1521, 0, 0) and as_masks == (1200, 60, 2), "the behaviour has changed"
PYTHON

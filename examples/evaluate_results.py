"""Measure the average recall of any program's COCO results file against a COCO-format folder.

The results here are the objects' own masks, then their filled boxes, which shows how good a box alone is as a mask.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from rich.console import Console

from sharpmask.data.coco import CocoFolder, Instance
from sharpmask.data.synthetic import synthesize
from sharpmask.evaluation import average_recall, load_results, recall_table


def result(image_id: int, instance: Instance, mask: np.ndarray) -> dict[str, Any]:
    """One entry of a results file, without a bbox, which is computed from the mask."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    segmentation = {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
    return {"image_id": image_id, "category_id": 1, "score": instance.area, "segmentation": segmentation}


def filled_box(instance: Instance) -> np.ndarray:
    """The object's box as a mask, bool (h, w)."""
    mask = np.zeros((instance.height, instance.width), dtype=bool)
    x, y, width, height = (int(v) for v in instance.box)
    mask[y : y + height, x : x + width] = True
    return mask


def main() -> None:
    with TemporaryDirectory() as temporary:
        root = synthesize(Path(temporary) / "data", images=8, seed=1, textures="generated")
        folder = CocoFolder(root)
        truth = folder.ground_truth()
        objects = [(photo.id, instance) for photo in folder.photos for instance in photo.instances]
        rows = {}
        for name, draw in (("own masks", Instance.mask), ("filled boxes", filled_box)):
            path = Path(temporary) / f"{name}.json"
            path.write_text(json.dumps([result(image_id, i, draw(i)) for image_id, i in objects]))
            rows[name] = average_recall(truth, load_results(path, truth), kind="segm")
    Console().print(recall_table(rows))
    print(f"{len(objects)} objects; filled boxes find {rows['filled boxes'].ar[10]['all']:.0%} on average over IoUs")


if __name__ == "__main__":
    main()

"""Ground truth and results to evaluate."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

HEIGHT, WIDTH = 150, 190


def ellipse(x: float, y: float, rx: float, ry: float) -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return ((columns - x) / rx) ** 2 + ((rows - y) / ry) ** 2 <= 1


def rle(mask: np.ndarray) -> dict[str, Any]:
    return coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))


def box(mask: np.ndarray) -> list[float]:
    return coco_mask.toBbox(rle(mask)).tolist()


def annotation(key: int, image: int, mask: np.ndarray, **more: Any) -> dict[str, Any]:
    area = float(mask.sum())
    entry = {"id": key, "image_id": image, "category_id": 1, "iscrowd": 0, "area": area, "bbox": box(mask)}
    return {**entry, "segmentation": rle(mask), **more}


def dataset(annotations: list[dict[str, Any]], images: int = 1, categories: int = 1) -> dict[str, Any]:
    return {
        "images": [{"id": i, "height": HEIGHT, "width": WIDTH} for i in range(1, images + 1)],
        "categories": [{"id": i, "name": f"c{i}"} for i in range(1, categories + 1)],
        "annotations": annotations,
    }


def random_case(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ellipses of all sizes (RLE, polygons, crowds, three classes) on 5 images, and jittered copies as results.

    Image 4 has objects but no results, image 5 results but no objects, and image 1 more than 100 results.
    """
    rng = np.random.default_rng(seed)
    annotations, results = [], []
    for image in range(1, 6):
        for number in range(rng.integers(3, 7)):
            radii = np.exp(rng.uniform(np.log(5), np.log(75), 2)) if number else np.array([70.0, 60.0])
            centre = rng.uniform((20, 20), (WIDTH - 20, HEIGHT - 20))
            mask = ellipse(*centre, *radii)
            more = {"category_id": int(rng.integers(1, 4)), "iscrowd": int(rng.random() < 0.15)}
            if rng.random() < 0.3 and not more["iscrowd"]:
                turns = np.linspace(0, 2 * np.pi, 20, endpoint=False)
                points = centre + radii * np.stack([np.cos(turns), np.sin(turns)], 1)
                more["segmentation"] = [points.ravel().tolist()]
                drawn = coco_mask.merge(coco_mask.frPyObjects(more["segmentation"], HEIGHT, WIDTH))
                more |= {"bbox": coco_mask.toBbox(drawn).tolist(), "area": float(coco_mask.area(drawn))}
            if image != 5:
                annotations.append(annotation(len(annotations) + 1, image, mask, **more))
            for _ in range(0 if image == 4 else 40 if image == 1 else 6):
                moved = ellipse(*(centre + rng.normal(0, 4, 2)), *(radii * np.exp(rng.normal(0, 0.15, 2))))
                score = round(float(rng.random()), 2)  # rounded: equal scores must occur
                results.append({"image_id": image, "category_id": 1, "score": score, "segmentation": rle(moved)})
    return dataset(annotations, images=5, categories=3), results

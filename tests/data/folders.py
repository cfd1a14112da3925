"""Small COCO-format folders to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 60, 80
Entry = dict[str, Any]


def rectangle(x: float, y: float, w: float, h: float) -> list[float]:
    """A polygon."""
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def entry(key: int | None, *polygons: Any, image: int = 1, **more: Any) -> Entry:
    """An annotation; without `key` it has no id."""
    ids = {} if key is None else {"id": key}
    return {**ids, "image_id": image, "category_id": 1, "segmentation": list(polygons), **more}


def document(*entries: Any, names: tuple[str, ...] = ("1.png",)) -> dict[str, Any]:
    images = [{"id": i, "file_name": name, "height": HEIGHT, "width": WIDTH} for i, name in enumerate(names, 1)]
    return {"images": images, "categories": [{"id": 1, "name": "a"}], "annotations": list(entries)}


def photo(path: Path, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), 99, np.uint8)).save(path, **options)
    return path


def write(root: Path, *entries: Any) -> Path:
    """A folder of one photo, with the id 1."""
    photo(root / "images" / "1.png")
    (root / "instances.json").write_text(json.dumps(document(*entries)))
    return root


def background(root: Path, photos: int, colour: int, info: Any = None) -> Path:
    """A folder of photos in a shade of green, as those of `squares`, without any object."""
    squares(root, *[{}] * photos, colour=colour, info=info)
    for path in (root / "images").iterdir():
        Image.fromarray(np.full((120, 160, 3), (0, colour, 0), np.uint8)).save(path)
    document = json.loads((root / "instances.json").read_text())
    (root / "instances.json").write_text(json.dumps(document | {"annotations": []}))
    return root


def squares(root: Path, *photos: dict[str, Any], colour: int = 0, side: int = 30, info: Any = None) -> Path:
    """A folder of photos of 120 x 160 pixels in a shade of green, each with a red square; ``photos`` are their keys."""
    (root / "images").mkdir(parents=True)
    images, annotations = [], []
    for key, more in enumerate(photos, 1):
        pixels = np.full((120, 160, 3), (0, colour, 0), np.uint8)
        pixels[40 : 40 + side, 50 : 50 + side] = (200, colour, 0)
        Image.fromarray(pixels).save(root / "images" / f"{root.name}{key}.png")
        images.append({"id": key, "file_name": f"{root.name}{key}.png", "height": 120, "width": 160, **more})
        polygon = [50, 40, 50 + side, 40, 50 + side, 40 + side, 50, 40 + side]
        annotations.append({"id": key, "image_id": key, "category_id": 1, "segmentation": [polygon]})
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "square"}]}
    (root / "instances.json").write_text(json.dumps(document | ({} if info is None else {"info": info})))
    return root

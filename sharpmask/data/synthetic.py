"""Generated pictures of occluding, textured objects with exact masks, as a COCO-format folder."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from pycocotools import mask as coco_mask
from rich.console import Console
from rich.progress import track

from ..errors import DataError
from .shapes import FAMILIES, Pixels, draw_shape, random_family
from .textures import Textures, load_texture_photos, random_texture

_SMALLEST_SIDE = 20  # longer side of an object, in pixels
_LARGEST_SHARE = 0.6  # longer side of an object, as a share of the picture's
# An object is annotated if at least so many pixels and such a share of it are visible.
_SMALLEST_VISIBLE = 64
_SMALLEST_VISIBLE_SHARE = 0.2

Region = tuple[slice, slice]


@dataclass(frozen=True)
class _Object:
    family: str
    alpha: Pixels  # coverage (a, b) with a soft edge; (top, left) of the picture is its top left corner
    top: int
    left: int

    def regions(self, height: int, width: int) -> tuple[Region, Region]:
        """The part of the object inside a picture of (height, width), as slices of the picture and of `alpha`."""
        y0, x0 = max(self.top, 0), max(self.left, 0)
        y1 = max(y0, min(self.top + self.alpha.shape[0], height))
        x1 = max(x0, min(self.left + self.alpha.shape[1], width))
        inner = slice(y0 - self.top, y1 - self.top), slice(x0 - self.left, x1 - self.left)
        return (slice(y0, y1), slice(x0, x1)), inner


def synthesize(
    out: str | Path,
    *,
    images: int,
    seed: int,
    size: tuple[int, int] = (240, 320),
    objects: tuple[int, int] = (3, 8),
    textures: Textures = "auto",
    progress: bool = False,
) -> Path:
    """Write a COCO-format set of occluding textured objects: `out/images/*.png` and `out/instances.json`.

    Each picture has `size` = (height, width) pixels and shows at least objects[0] and at most objects[1] objects.
    Their longer side is from 20 pixels to 60% of the picture's, and they hide parts of each other or cross the
    border. Only the visible part of an object is annotated, as a compressed RLE, and only if it is at least 64
    pixels and a fifth of the object. Picture i depends only on `seed`, i, `size`, `objects` and the textures, so a
    larger set begins with the pictures of a smaller one.

    `textures`: "generated" draws all of them. "photo" takes about 60% from photos in scikit-image's package, which
    must be installed. "auto" means "photo" if scikit-image is installed and "generated" if not, so it gives other
    pictures on a machine without it.

    The same arguments give the same bytes with the same versions of numpy, Pillow and scikit-image on the same kind
    of CPU. Other versions may round or compress differently.

    The folder appears only when it is complete. `progress` shows a bar on stderr.

    Returns `out`. Raises DataError for arguments out of range, and if `out` is not a new or empty folder or cannot be
    written.
    """
    out = Path(out)
    _check_arguments(out, images, seed, size, objects)
    photos = load_texture_photos(textures)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
            work = Path(folder) / out.name
            _write(work, images, seed, size, objects, photos, progress)
            if out.is_dir():
                out.rmdir()
            work.rename(out)
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error.strerror or error}") from error
    return out


def _check_arguments(out: Path, images: int, seed: int, size: tuple[int, int], objects: tuple[int, int]) -> None:
    if images < 1:
        raise DataError(f"images must be at least 1, got {images}")
    if seed < 0:
        raise DataError(f"seed must be at least 0, got {seed}")
    if not 64 <= min(size) <= max(size) <= 8192:
        raise DataError(f"size must be a height and width from 64 to 8192, got {size}")
    if not 1 <= objects[0] <= objects[1] <= 100:
        raise DataError(f"objects must be (fewest, most) with 1 <= fewest <= most <= 100, got {objects}")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f"{out}: exists already; out must be a new or empty folder")


def _write(
    folder: Path,
    images: int,
    seed: int,
    size: tuple[int, int],
    objects: tuple[int, int],
    photos: Sequence[Image.Image],
    progress: bool,
) -> None:
    """Draw all pictures and write them with their annotations into `folder`."""
    (folder / "images").mkdir(parents=True)
    height, width = size
    document: dict[str, Any] = {
        "info": {
            "description": "Generated occluding objects with exact masks of their visible parts",
            "seed": seed,
            "textures": "photo" if photos else "generated",
        },
        "images": [],
        "categories": [{"id": number, "name": name} for number, name in enumerate(FAMILIES, 1)],
        "annotations": [],
    }
    for index in track(range(images), "Drawing", console=Console(stderr=True), disable=not progress or images == 1):
        rng = np.random.default_rng([seed, index])
        scene, labels = _compose(rng, height, width, objects)
        name = f"{index + 1:06d}.png"
        picture = _render(rng, scene, height, width, photos)
        # The pictures are noisy: more effort hardly saves space.
        picture.save(folder / "images" / name, compress_level=1)
        document["images"].append({"id": index + 1, "file_name": name, "height": height, "width": width})
        for item, visible in _visible(scene, labels):
            document["annotations"].append(
                _annotation(len(document["annotations"]) + 1, index + 1, item.family, visible)
            )
    (folder / "instances.json").write_text(json.dumps(document), encoding="utf-8")


def _compose(
    rng: np.random.Generator, height: int, width: int, objects: tuple[int, int]
) -> tuple[list[_Object], NDArray[np.uint8]]:
    """Objects from back to front, and at each pixel the position + 1 of the object on top, 0 for none."""
    # A scene in which objects hide too many others is dropped.
    for _ in range(20):
        scene = [_place(rng, height, width) for _ in range(rng.integers(objects[0], objects[1] + 1))]
        labels = np.zeros((height, width), np.uint8)
        for number, item in enumerate(scene, 1):
            outer, inner = item.regions(height, width)
            labels[outer][item.alpha[inner] >= 0.5] = number
        if len(_visible(scene, labels)) >= objects[0]:
            break
    return scene, labels


def _place(rng: np.random.Generator, height: int, width: int) -> _Object:
    """An object of random family, size and place."""
    largest = _LARGEST_SHARE * max(height, width)
    side = math.exp(rng.uniform(math.log(_SMALLEST_SIDE), math.log(largest)))
    family = random_family(rng)
    alpha = draw_shape(rng, family, side)
    top = round(rng.uniform(0, height) - alpha.shape[0] / 2)
    left = round(rng.uniform(0, width) - alpha.shape[1] / 2)
    return _Object(family, alpha, top, left)


def _visible(scene: Sequence[_Object], labels: NDArray[np.uint8]) -> list[tuple[_Object, NDArray[np.bool_]]]:
    """The objects that are visible enough to be annotated, with their visible pixels, bool (height, width)."""
    counts = np.bincount(labels.ravel(), minlength=len(scene) + 1)
    return [
        (item, labels == number)
        for number, item in enumerate(scene, 1)
        if counts[number] >= max(_SMALLEST_VISIBLE, _SMALLEST_VISIBLE_SHARE * np.sum(item.alpha >= 0.5))
    ]


def _annotation(key: int, image_id: int, family: str, visible: NDArray[np.bool_]) -> dict[str, Any]:
    """An object as an entry of the COCO file."""
    rle = coco_mask.encode(np.asfortranarray(visible, np.uint8))
    return {
        "id": key,
        "image_id": image_id,
        "category_id": FAMILIES.index(family) + 1,
        "segmentation": {
            "size": [int(side) for side in rle["size"]],
            "counts": rle["counts"].decode("ascii"),
        },
        "area": int(visible.sum()),
        "bbox": coco_mask.toBbox(rle).tolist(),
        "iscrowd": 0,
    }


def _render(
    rng: np.random.Generator,
    scene: Sequence[_Object],
    height: int,
    width: int,
    photos: Sequence[Image.Image],
) -> Image.Image:
    """The picture of a scene: a background, the objects with shading and shadows, noise and a slight blur."""
    canvas = random_texture(rng, height, width, photos)
    for item in scene:
        outer, inner = item.regions(height, width)
        alpha = item.alpha[..., None]
        rows, columns = item.alpha.shape
        surface = random_texture(rng, rows, columns, photos) * _shading(rng, rows, columns)
        if rng.random() < 0.5:
            canvas[outer] *= 1 - _shadow(rng, item.alpha)[inner]
        canvas[outer] += alpha[inner] * (surface[inner] - canvas[outer])
    canvas += rng.normal(0, rng.uniform(0.5, 5), canvas.shape).astype(np.float32)
    picture = Image.fromarray(np.clip(canvas + 0.5, 0, 255).astype(np.uint8))
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.0, 0.8)))


def _shading(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """A brightness factor (height, width, 1) that falls off in a random direction."""
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)
    direction = rng.uniform(0, 2 * math.pi)
    slope = rng.uniform(0, 0.35)
    shade = 1 + slope * (math.cos(direction) * x + math.sin(direction) * y)
    return shade[..., None].astype(np.float32)


def _shadow(rng: np.random.Generator, alpha: Pixels) -> Pixels:
    """Darkness (a, b, 1) in [0, 1] of the object's shadow on what lies behind it."""
    mask = Image.fromarray((alpha * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(rng.uniform(1, 4)))
    darkness: Pixels = np.asarray(mask, np.float32) * np.float32(rng.uniform(0.1, 0.6) / 255)
    return darkness[..., None]

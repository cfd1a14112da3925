"""Random textures, drawn or cut from photos."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from ..errors import DataError
from .images import load_image
from .shapes import Pixels

# Photos that are part of scikit-image's package (it would download others). `coffee` and `chelsea` must not be
# added: they are kept for tests on photos that no training image contains.
_PHOTOS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
_PHOTO_SHARE = 0.6  # of textures, if there are photos

Textures = Literal["auto", "photo", "generated"]


def load_texture_photos(textures: Textures = "auto") -> list[Image.Image]:
    """The photos that textures are cut from; none for "generated", or for "auto" without scikit-image.

    Raises DataError if `textures` is unknown, or if it is "photo" and scikit-image is not installed.
    """
    if textures not in ("auto", "photo", "generated"):
        raise DataError(f"textures must be 'auto', 'photo' or 'generated', got {textures!r}")
    if textures == "generated":
        return []
    try:
        folder = Path(str(import_module("skimage.data").__file__)).parent
    except ImportError:
        folder = None
    paths = [folder / name for name in _PHOTOS if (folder / name).is_file()] if folder else []
    if textures == "photo" and not paths:
        raise DataError("textures must be 'generated' without scikit-image, got 'photo' (pip install scikit-image)")
    return [Image.fromarray(load_image(path)) for path in paths]


def random_texture(rng: np.random.Generator, height: int, width: int, photos: Sequence[Image.Image] = ()) -> Pixels:
    """A texture, float32 (height, width, 3), roughly from 0 to 255. With `photos` it is mostly a crop of one."""
    if photos and rng.random() < _PHOTO_SHARE:
        return _photo_texture(rng, height, width, photos)
    return _generated_texture(rng, height, width)


def _photo_texture(rng: np.random.Generator, height: int, width: int, photos: Sequence[Image.Image]) -> Pixels:
    """A crop of one of the photos at a random zoom, mirrored and recoloured."""
    photo = photos[int(rng.integers(len(photos)))]
    zoom = math.exp(rng.uniform(math.log(0.4), math.log(1.6)))
    zoom = max(zoom, width / photo.width, height / photo.height)
    crop_width, crop_height = min(width / zoom, photo.width), min(height / zoom, photo.height)
    left = rng.uniform(0, photo.width - crop_width)
    top = rng.uniform(0, photo.height - crop_height)
    box = (left, top, min(left + crop_width, photo.width), min(top + crop_height, photo.height))
    crop = photo.resize((width, height), Image.Resampling.BILINEAR, box=box)
    pixels = np.asarray(crop, np.float32)[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
    return pixels * rng.uniform(0.5, 1.3, 3).astype(np.float32) + rng.uniform(-30, 40, 3).astype(np.float32)


def _generated_texture(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """Two random colours mixed by clouds, stripes, checks or spots."""
    colours = rng.uniform(0, 255, (2, 3)).astype(np.float32)
    kind = rng.choice(["clouds", "stripes", "checks", "spots"])
    mix = _clouds(rng, height, width, rng.uniform(8, 64))
    if kind in ("stripes", "checks"):
        y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
        angle, period = rng.uniform(0, math.pi), rng.uniform(5, 30)
        along = (x * math.cos(angle) + y * math.sin(angle)) * (2 * math.pi / period)
        wave = np.sin(along + rng.uniform(0, 8) * mix)
        if kind == "checks":
            wave = wave * np.sin((x * math.sin(angle) - y * math.cos(angle)) * (2 * math.pi / period))
        mix = np.clip(rng.uniform(0.6, 4) * wave / 2 + 0.5, 0, 1)
    elif kind == "spots":
        mix = np.clip(rng.uniform(4, 15) * (mix - rng.uniform(0.4, 0.6)) + 0.5, 0, 1)
    mixed: Pixels = colours[0] + mix[..., None].astype(np.float32) * (colours[1] - colours[0])
    return mixed


def _clouds(rng: np.random.Generator, height: int, width: int, cell: float) -> Pixels:
    """Smooth noise, float32 (height, width), roughly in [0, 1]: three octaves, the coarsest of `cell` pixels."""
    total = np.zeros((height, width), np.float32)
    for octave in range(3):
        pixels = max(cell / 2**octave, 2)
        grid = rng.random((math.ceil(height / pixels) + 1, math.ceil(width / pixels) + 1), np.float32)
        smooth = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(smooth) * np.float32(4 / 7 / 2**octave)
    return total

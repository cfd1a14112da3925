"""Random shapes: blobs, polygons, ellipses, stars and bars."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

FAMILIES = ("blob", "polygon", "ellipse", "star", "bar")
"""Families of shapes. The category id of a family is its position plus one."""

_MARGIN = 4  # pixels around a shape for its soft edge
_SUPERSAMPLING = 4
_SMALLEST_WITH_HOLE = 40  # pixels of length

Pixels = NDArray[np.float32]


def random_shape(rng: np.random.Generator, side: int) -> NDArray[np.bool_]:
    """A shape of a random family: bool (side, side), centred, `side` pixels long in its longer direction."""
    alpha = draw_shape(rng, random_family(rng), side)
    shape = alpha[_MARGIN : _MARGIN + side, _MARGIN : _MARGIN + side] >= 0.5
    shape = shape[: alpha.shape[0] - 2 * _MARGIN, : alpha.shape[1] - 2 * _MARGIN]
    square = np.zeros((side, side), bool)
    top, left = (side - shape.shape[0]) // 2, (side - shape.shape[1]) // 2
    square[top : top + shape.shape[0], left : left + shape.shape[1]] = shape
    return square


def random_family(rng: np.random.Generator) -> str:
    """One of `FAMILIES`, all with the same probability."""
    return FAMILIES[int(rng.integers(len(FAMILIES)))]


def draw_shape(rng: np.random.Generator, family: str, side: float) -> Pixels:
    """Coverage, float32 (a, b) in [0, 1], of a shape that is `side` pixels long, with a margin for its soft edge."""
    outline = _outline(rng, family)
    low, high = outline.min(0), outline.max(0)
    scale = side / (high - low).max()
    width, height = np.ceil((high - low) * scale).astype(int) + 2 * _MARGIN
    image = Image.new("L", (width * _SUPERSAMPLING, height * _SUPERSAMPLING))
    draw = ImageDraw.Draw(image)
    points = ((outline - low) * scale + _MARGIN) * _SUPERSAMPLING
    draw.polygon(points.ravel().tolist(), fill=255)
    if side >= _SMALLEST_WITH_HOLE and rng.random() < 0.15:
        centre = points.mean(0) + rng.uniform(-0.1, 0.1, 2) * side * _SUPERSAMPLING
        hole = _outline(rng, "blob") * rng.uniform(0.08, 0.2) * side * _SUPERSAMPLING + centre
        draw.polygon(hole.ravel().tolist(), fill=0)
    soft = image.reduce(_SUPERSAMPLING).filter(ImageFilter.GaussianBlur(rng.uniform(0.0, 0.9)))
    alpha: Pixels = np.asarray(soft, np.float32) / np.float32(255)
    return alpha


def _outline(rng: np.random.Generator, family: str) -> NDArray[np.float64]:
    """Corners (n, 2) of a shape around the origin with a largest radius of about 1, turned at random."""
    turn = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    if family == "blob":
        waves = np.arange(1, 6)[:, None]
        amplitude = rng.uniform(0, 0.5, (5, 1)) / waves
        radius = np.maximum(1 + (amplitude * np.cos(waves * turn + rng.uniform(0, 7, (5, 1)))).sum(0), 0.25)
    elif family == "polygon":
        corners = rng.integers(3, 9)
        turn = (np.arange(corners) + rng.uniform(-0.35, 0.35, corners)) / corners * 2 * np.pi
        radius = rng.uniform(0.6, 1, corners)
    elif family == "ellipse":
        radius = np.ones_like(turn)
    elif family == "star":
        tips = rng.integers(4, 9)
        turn = np.arange(2 * tips) / tips * np.pi
        radius = np.where(np.arange(2 * tips) % 2, rng.uniform(0.35, 0.65), 1) * rng.uniform(0.9, 1, 2 * tips)
    elif family == "bar":  # superellipse: a box with rounded corners
        power = rng.uniform(3, 8)
        radius = (np.abs(np.cos(turn)) ** power + np.abs(np.sin(turn)) ** power) ** (-1 / power)
    else:
        raise ValueError(f"family must be one of {FAMILIES}, got {family!r}")
    points = np.stack([radius * np.cos(turn), radius * np.sin(turn)], 1)
    points[:, 1] *= rng.uniform(0.15, 0.4) if family == "bar" else rng.uniform(0.4, 1)
    if family == "bar":
        points[:, 1] += rng.uniform(-0.4, 0.4) * points[:, 0] ** 2  # bends the bar
    angle = rng.uniform(0, 2 * np.pi)
    rotation = [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
    return points @ np.array(rotation)

"""Pictures: masks drawn over a photo, and a mask growing through the refinement modules."""

from __future__ import annotations

import colorsys
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from PIL.PngImagePlugin import PngInfo
from pycocotools import mask as coco_mask

from .data.containers import DRAWN
from .files import atomic

GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
# Chosen by search: with these the first 6, 10 and 20 colours are farthest apart to the eye (in OKLab).
FIRST_HUE = 0.86
STYLES = ((0.95, 0.75), (0.85, 1.0), (0.55, 1.0))  # saturation, value
FILL_OPACITY = 0.5
EDGE_OPACITY = 0.55  # of the thin dark line around a contour
BYTES = np.arange(256, dtype=np.float32)
PICTURE_FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}
LABEL_BACKGROUND = (20, 20, 24)
# Position, then red, green and blue. Lightness rises all the way, so the ramp also reads in greyscale print.
RAMP = ((0, 7, 6, 20), (0.25, 65, 22, 106), (0.5, 158, 47, 105), (0.75, 236, 105, 66), (1, 252, 240, 176))


def distinct_colours(n: int) -> np.ndarray:
    """`n` colours, (n, 3) uint8 RGB.

    Each hue is a golden-ratio turn after the one before, which spreads any number of hues evenly. Brightness and
    saturation change as well, so that colours of similar hue differ.
    """
    rows = [colorsys.hsv_to_rgb((FIRST_HUE + i * GOLDEN_RATIO) % 1, *STYLES[i % 3]) for i in range(n)]
    return np.round(np.array(rows).reshape(n, 3) * 255).astype(np.uint8)


def overlay(
    image: np.ndarray,
    masks: Iterable[np.ndarray | Mapping[str, Any]],
    scores: Sequence[float] | None = None,
    boxes: Sequence[Sequence[float]] | None = None,
    *,
    limit: int | None = 20,
    fill: float = FILL_OPACITY,
) -> np.ndarray:
    """`image` with masks drawn over it, each filled and outlined in its own colour; smaller masks lie on top.

    image: (h, w, 3) uint8 RGB. masks: boolean (h, w) arrays or compressed COCO RLE dicts, best first; may be
    an iterator, because only one mask at a time is held uncompressed. scores: written beside each mask where
    there is room. limit: the number of masks drawn, those with the best scores, or the first ones without
    scores. boxes: one (x, y, width, height) in pixels per mask, drawn as rectangles. fill: opacity of the
    inside, 0 to 1.

    Returns a new (h, w, 3) uint8 array. Raises ValueError for another shape or dtype, or for fewer scores or
    boxes than masks.
    """
    _check_image("image", image)
    height, width = image.shape[:2]
    if limit is not None and scores is None:
        masks = itertools.islice(masks, limit)
    rles = [_as_rle(mask, height, width) for mask in masks]
    for name, values in (("scores", scores), ("boxes", boxes)):
        if values is not None and len(values) < len(rles):
            raise ValueError(f"{name} must be one per mask ({len(rles)}), got {len(values)}")
    ranked = list(range(len(rles)))
    if scores is not None:
        ranked = sorted(ranked, key=lambda i: -scores[i])[:limit]
    colours = distinct_colours(len(ranked))
    areas = {i: int(coco_mask.area(rles[i])) for i in ranked}
    canvas = image.copy()
    thickness = max(1, round(min(height, width) / 320))
    for rank, i in sorted(enumerate(ranked), key=lambda pair: -areas[pair[1]]):
        _draw_mask(canvas, image, rles[i], colours[rank], fill, thickness)
    if boxes is None and scores is None:
        return canvas
    picture = Image.fromarray(canvas)
    if boxes is not None:
        for rank, i in enumerate(ranked):
            _draw_box(picture, boxes[i], tuple(colours[rank].tolist()), thickness)
    if scores is not None:
        labelled = [(rank, i) for rank, i in enumerate(ranked) if areas[i]]
        _draw_scores(picture, [(rles[i], float(scores[i]), colours[rank]) for rank, i in labelled])
    return np.asarray(picture).copy()


def film_strip(
    image_crop: np.ndarray,
    stages: Sequence[np.ndarray],
    labels: Sequence[str] | None = None,
    *,
    threshold: float = 0.5,
    panel: int | None = None,
) -> np.ndarray:
    """A mask growing through the refinement modules, in a row of panels: window, stages, mask over the window.

    image_crop: (S, S, 3) uint8, the window. stages: 2-D float arrays of rising size, usually (10, 10),
    (20, 20), ...; the last one is the mask's probability, which the last panel cuts at `threshold`. A stage
    with values outside [0, 1] (an activation) is scaled so that its minimum is 0 and its maximum 1. labels: one
    text for each of the len(stages) + 2 panels. panel: side of a panel in pixels. The default is the smallest
    multiple of the last stage's side that is at least 200, so that the cells of a stage are squares of equal
    size.

    Returns (height, width, 3) uint8. Raises ValueError naming the argument that does not fit.
    """
    _check_image("image_crop", image_crop)
    grids = [np.asarray(stage, dtype=np.float64) for stage in stages]
    if not grids or any(grid.ndim != 2 or 0 in grid.shape for grid in grids):
        raise ValueError(f"stages must be at least one non-empty 2-D array, got shapes {[g.shape for g in grids]}")
    if labels is None:
        labels = ["window", *(f"{g.shape[0]} x {g.shape[1]}" for g in grids), "mask"]
    if len(labels) != len(grids) + 2:
        raise ValueError(f"labels must be {len(grids) + 2} (window, stages, mask), got {len(labels)}")
    side = panel or math.ceil(200 / max(grids[-1].shape)) * max(grids[-1].shape)
    window = np.asarray(Image.fromarray(image_crop).resize((side, side), Image.Resampling.BICUBIC))
    # Probability is resized first and cut then, so that the outline has the panel's resolution.
    final = _resize_grid(grids[-1], side, Image.Resampling.BILINEAR) > threshold
    result = (window * 0.5).astype(np.uint8)
    _draw_mask(result, window, _as_rle(final, side, side), np.array(RAMP[3][1:]), 0.35, max(1, side // 120))
    panels = [
        window,
        *(_heat(_resize_grid(_unit_range(g), side, Image.Resampling.NEAREST)) for g in grids),
        result,
    ]
    return _side_by_side(panels, labels)


def format_of(path: Path | str, known: Mapping[str, str] = PICTURE_FORMATS) -> str:
    """The format of a picture that is to be written, by its suffix. Raises ValueError unless it is a `known` one."""
    kind = known.get(Path(path).suffix.lower())
    if kind is None:
        raise ValueError(f"a picture's name must end in {', '.join(known)}, got {str(path)!r}")
    return kind


def save_picture(array: np.ndarray, path: Path | str) -> None:
    """Write an (h, w, 3) or (h, w) uint8 array as PNG or JPEG, by the path's suffix.

    The file carries a comment by which :func:`sharpmask.data.photos.find_photos` knows that it is no photo. Writing
    is atomic: readers see the old file or the new one. Missing folders are made. Raises ValueError for another
    suffix, OSError where `path` cannot be written.
    """
    kind = format_of(path)
    picture = Image.fromarray(np.ascontiguousarray(array))
    note = PngInfo()
    note.add_text("Software", DRAWN)
    # PNG at its default level, 6, takes three times as long and makes files 5 % smaller.
    png = {"pnginfo": note, "compress_level": 3}
    options: dict[str, Any] = png if kind == "png" else {"comment": DRAWN, "quality": 90}
    with atomic(Path(path)) as part:
        picture.save(part, format=kind, **options)


def _check_image(name: str, image: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"{name} must be uint8 (h, w, 3), got {image.dtype} {tuple(image.shape)}")


def _as_rle(mask: np.ndarray | Mapping[str, Any], height: int, width: int) -> dict[str, Any]:
    size = tuple(mask["size"]) if isinstance(mask, Mapping) else np.shape(mask)
    if size != (height, width):
        raise ValueError(f"masks must be of the image's size {(height, width)}, got {size}")
    if isinstance(mask, Mapping):
        return dict(mask)
    return dict(coco_mask.encode(np.asfortranarray(np.asarray(mask, dtype=bool), dtype=np.uint8)))


def _draw_mask(
    canvas: np.ndarray,
    image: np.ndarray,
    rle: dict[str, Any],
    colour: np.ndarray,
    fill: float,
    thickness: int,
) -> None:
    """Paint one mask into `canvas`.

    Its colour is mixed with that of the photo `image`, not with masks below, so it is the same however many masks
    overlap. fill: opacity of the inside. thickness: of the contour, in pixels.
    """
    x, y, w, h = (int(v) for v in coco_mask.toBbox(rle))
    if w == 0 or h == 0:
        return
    # The contour needs room on every side. At the image's edge there is none, so no contour runs along it.
    pad = 3 * thickness
    top, left = max(0, y - pad), max(0, x - pad)
    area = (slice(top, y + h + pad), slice(left, x + w + pad))
    mask = coco_mask.decode(rle)[area].astype(bool)
    tint = colour.astype(np.float32)
    blurred = _blur(mask, 0.75 * thickness)
    # The blurred mask is 1/2 on its border. The contour is there: light inside the mask, dark outside.
    lines = np.clip(2.4 * (1 - np.abs(2 * (BYTES / 255) - 1)), 0, 1)
    near = (lines > 0).take(blurred)
    # Elsewhere a byte becomes a byte.
    tables = np.round(_tinted(BYTES[:, None], tint, fill)).astype(np.uint8)
    for channel in range(3):
        tinted = tables[:, channel].take(image[area][..., channel])
        np.copyto(canvas[area][..., channel], tinted, where=mask & ~near)
    inside, line = mask[near][:, None], lines[blurred[near]][:, None]
    painted = np.where(inside, _tinted(image[area][near].astype(np.float32), tint, fill), canvas[area][near])
    edge = np.where(inside, tint + 0.3 * (255 - tint), (1 - EDGE_OPACITY) * painted)
    canvas[area][near] = np.round(painted + line * (edge - painted)).astype(np.uint8)


def _tinted(values: np.ndarray, tint: np.ndarray, fill: float) -> np.ndarray:
    return values + fill * (tint - values)


def _blur(mask: np.ndarray, radius: float) -> np.ndarray:
    """The mask (h, w), 0 or 255, blurred: uint8."""
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(radius)))


def _draw_box(picture: Image.Image, box: Sequence[float], colour: tuple[int, ...], thickness: int) -> None:
    x, y, w, h = box
    xs = np.clip([x, max(x, x + w - 1)], 0, picture.width - 1).tolist()
    ys = np.clip([y, max(y, y + h - 1)], 0, picture.height - 1).tolist()
    ImageDraw.Draw(picture).rectangle((xs[0], ys[0], xs[1], ys[1]), outline=colour, width=thickness)


def _draw_scores(picture: Image.Image, items: Sequence[tuple[dict[str, Any], float, np.ndarray]]) -> None:
    """Write scores, best first, each inside its mask. A score that would cover an earlier one is left out."""
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(max(10, round(min(picture.size) / 36)))
    taken: list[tuple[float, float, float, float]] = []
    for rle, score, colour in items:
        text = f"{score:.2f}"
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        half_w, half_h = (right - left) / 2 + 3, (bottom - top) / 2 + 3
        x, y = _label_point(rle)
        if 4 * half_w * half_h > coco_mask.area(rle) / 3:  # it would hide the object, so write it above
            y = float(coco_mask.toBbox(rle)[1]) - half_h - 2
        x = min(max(x, half_w), max(half_w, picture.width - half_w))
        y = min(max(y, half_h), max(half_h, picture.height - half_h))
        frame = (x - half_w, y - half_h, x + half_w, y + half_h)
        if any(frame[0] < t[2] and t[0] < frame[2] and frame[1] < t[3] and t[1] < frame[3] for t in taken):
            continue
        taken.append(frame)
        draw.rounded_rectangle(frame, radius=3, fill=LABEL_BACKGROUND, outline=tuple(colour.tolist()))
        draw.text((x, y), text, fill=(255, 255, 255), font=font, anchor="mm")


def _label_point(rle: dict[str, Any]) -> tuple[float, float]:
    """(x, y) of the mask's pixel nearest to its centre of mass, which need not be on the mask itself (a ring)."""
    x, y, w, h = (int(v) for v in coco_mask.toBbox(rle))
    mask = coco_mask.decode(rle)[y : y + h, x : x + w]
    count = mask.sum(dtype=np.int64)
    row, col = (float(mask.sum(axis, dtype=np.int64) @ np.arange(n)) / count for axis, n in ((1, h), (0, w)))
    nearest = math.ceil(row - 0.5), math.ceil(col - 0.5)  # the upper left one of equally near pixels
    if not mask[nearest]:
        ys, xs = np.nonzero(mask)
        best = np.argmin((ys - row) ** 2 + (xs - col) ** 2)
        nearest = int(ys[best]), int(xs[best])
    return float(x + nearest[1]), float(y + nearest[0])


def _unit_range(grid: np.ndarray) -> np.ndarray:
    finite = grid[np.isfinite(grid)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    grid = np.clip(np.nan_to_num(grid, nan=low), low, high)
    if low >= 0 and high <= 1:
        return grid
    return (grid - low) / (high - low) if high > low else np.zeros_like(grid)


def _resize_grid(grid: np.ndarray, side: int, how: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(grid.astype(np.float32)).resize((side, side), how))


def _heat(values: np.ndarray) -> np.ndarray:
    position, *channels = zip(*RAMP, strict=True)
    return np.stack([np.interp(values, position, channel) for channel in channels], axis=-1).astype(np.uint8)


def _side_by_side(panels: Sequence[np.ndarray], labels: Sequence[str]) -> np.ndarray:
    side = panels[0].shape[0]
    gap, font_size = max(4, side // 32), max(11, side // 14)
    caption = font_size * 2
    strip = Image.new("RGB", (len(panels) * (side + gap) + gap, side + caption + gap), (255, 255, 255))
    draw, font = ImageDraw.Draw(strip), ImageFont.load_default(font_size)
    for index, (panel, label) in enumerate(zip(panels, labels, strict=True)):
        left = gap + index * (side + gap)
        strip.paste(Image.fromarray(panel), (left, gap))
        centre = (left + side / 2, gap + side + caption / 2)
        draw.text(centre, label, fill=(60, 60, 66), font=font, anchor="mm")
    return np.asarray(strip).copy()

"""Masks for clicks and boxes on one photo, called as the predictor of Segment Anything is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from sharpmask_kernels import Windows
from sharpmask_kernels.windows import logit

from ..errors import DataError
from ..ranges import convert, shown
from .answers import Answers, answer
from .looking import PhotoSearch
from .maps import Grid, ImageMaps, Stopwatch, grid_of
from .pictures import ImageLike, Picture
from .prompts import CANDIDATES, Prompt, as_corners, as_points
from .proposals import Rle, areas, resized

SIDE: Final = 256
"""Side of the small logits."""
NOWHERE: Final = -32.0
"""Logit of pixels outside of a window, and the least of all."""

Floats: TypeAlias = npt.NDArray[np.float32]
Results: TypeAlias = tuple[npt.NDArray[np.bool_] | Floats, Floats, Floats]


class Argument(NamedTuple):
    """An argument by the name that the caller used."""

    name: str
    value: Any


@dataclass
class MaskPredictor(PhotoSearch):
    """Masks for clicks and boxes: ``set_image`` looks at a photo once, ``predict`` answers as often as is asked.

    It is called as ``SamPredictor`` of the package segment-anything is, and returns the same shapes and dtypes. The
    settings are those of every :class:`~sharpmask.search.looking.PhotoSearch`. Not for several threads at a time.

    Raises ``DataError`` for an engine or a precision that cannot be had here.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.reset_image()

    def __getstate__(self) -> dict[str, Any]:
        # The maps know functions, which pickle refuses: a copy has no photo.
        return {**self.__dict__, "_photo": None}

    @property
    def is_image_set(self) -> bool:
        """Whether there is a photo to predict on."""
        return self._photo is not None

    @property
    def original_size(self) -> tuple[int, int]:
        """(h, w) of the photo in pixels, and so of its masks."""
        return self._maps[0].size

    def reset_image(self) -> None:
        """Forget the photo."""
        self._photo: tuple[ImageMaps, Grid] | None = None

    @torch.inference_mode()
    def set_image(self, image: ImageLike | Picture, image_format: Literal["RGB", "BGR"] = "RGB") -> None:
        """Look at a photo: a path, a file's content, an open file, a PIL image or uint8 (h, w, 3).

        It may have been read before, by ``see``. ``image_format``: the order of an array's channels; OpenCV reads BGR.

        Raises ``DataError`` for an unusable file or format, ``ValueError`` for what is no photo. The photo before is
        forgotten in any case.
        """
        self.reset_image()
        convert(Literal["RGB", "BGR"], image_format, "image_format")
        if image_format == "BGR":
            if not isinstance(image, np.ndarray):
                raise DataError(f"image_format must be 'RGB' for what is no array, got 'BGR' for {shown(image)}")
            image = image[..., ::-1]
        maps = self.look(image, Stopwatch(self.device))
        self._photo = maps, grid_of(maps, self.model.window)

    @torch.inference_mode()
    def predict(
        self,
        points: Any = None,
        labels: Any = None,
        boxes: Any = None,
        mask_input: Any = None,
        multimask: bool = True,
        return_logits: bool = False,
        *,
        point_coords: Any = None,
        point_labels: Any = None,
        box: Any = None,
        multimask_output: bool | None = None,
    ) -> Results:
        """Masks of the object that clicks, a box or both show, the smallest first.

        ``points``: (N, 2), x and y in pixels of the photo. ``labels``: (N), 1 for a click on the object, 0 for one
        beside it; without them, all are on it. ``boxes``: (4) or (B, 4), the corners x0, y0, x1, y1; several boxes are
        several objects and take no points. ``mask_input``: (1, 256, 256), small logits of an earlier call: masks like
        that one are preferred. ``multimask``: up to three masks of different sizes instead of the best one.

        Returns masks, bool (C, h, w), scores, float32 (C) in [0, 1], and small logits, float32 (C, 256, 256), of the
        photo reduced to a longer side of 256. ``return_logits``: float32 logits instead of masks, which are where these
        exceed 0. For B > 1 boxes everything has one more dimension in front, B.

        ``point_coords``, ``point_labels``, ``box`` and ``multimask_output`` are the names that Segment Anything has for
        points, labels, boxes and multimask.

        Raises ``RuntimeError`` without a photo, and ``ValueError`` that names the argument that is unusable.
        """
        maps, grid = self._maps
        if multimask_output is not None:
            multimask = multimask_output
        prompts = prompts_of(
            maps.size,
            _either("points", points, "point_coords", point_coords),
            _either("labels", labels, "point_labels", point_labels),
            _either("boxes", boxes, "box", box),
            mask_input,
            multimask,
        )
        found = answer(self, maps, prompts, CANDIDATES, Stopwatch(self.device), grid)
        most = None if multimask else 1
        area = areas(found.rles)
        chosen = [sorted(order[:most], key=area.__getitem__) for order in found.chosen]
        parts = [self._results(maps, found, order, return_logits) for order in chosen]
        if len(parts) == 1:
            return parts[0]
        masks, scores, small = (np.stack(part) for part in zip(*parts, strict=True))
        return masks, scores, small

    @property
    def _maps(self) -> tuple[ImageMaps, Grid]:
        if self._photo is None:
            raise RuntimeError("predict needs a photo: call set_image first")
        return self._photo

    def _results(self, maps: ImageMaps, found: Answers, order: list[int], as_logits: bool) -> Results:
        """Masks or logits, scores and small logits of the windows at the positions ``order``."""
        index = torch.tensor(order, device=self.device)
        windows, logits = found.windows.select(index), found.logits[index]
        rows, cols = small_size(maps.size)
        small = np.full((len(order), SIDE, SIDE), NOWHERE, dtype=np.float32)
        factor = max(maps.size) / SIDE
        small[:, :rows, :cols] = self._spread(windows, logits, (rows, cols), [s * factor for s in maps.scales])
        masks: npt.NDArray[np.bool_] | Floats
        if as_logits:
            masks = self._spread(windows, logits, maps.size, maps.scales)
        else:
            masks = np.stack([coco_mask.decode(found.rles[i]).astype(bool) for i in order])
        return masks, found.scores[order], small

    def _spread(self, windows: Windows, logits: Tensor, size: tuple[int, int], scales: list[float]) -> Floats:
        """Logits at the pixels of the photo in some size; above 0 where a pixel belongs to the mask."""
        spread = self._placement.spread(logits, windows, size, scales) - logit(self._settings.threshold)
        return spread.clamp(min=NOWHERE).cpu().numpy()


def small_size(size: tuple[int, int]) -> tuple[int, int]:
    """The part (h, w) of the small logits that shows a photo of ``size``; the rest, right and below, is empty."""
    height, width = (max(1, round(side * SIDE / max(size))) for side in size)
    return height, width


def prompts_of(
    size: tuple[int, int], points: Argument, labels: Argument, boxes: Argument, mask_input: Any, multimask: bool
) -> list[Prompt]:
    """What ``predict`` is asked for on a photo of ``size`` (h, w): one object, or one a box."""
    places = [] if points.value is None else as_points(points.value, size, points.name)
    rectangles = [] if boxes.value is None else as_corners(boxes.value, size, boxes.name)
    on_object = _labels(labels, points.name, len(places))
    if not places and not rectangles:
        raise ValueError(f"{points.name} must hold a click, or {boxes.name} a box, got neither")
    if not rectangles and not any(on_object):
        raise ValueError(f"{labels.name} must hold a 1 where no box is given, got {shown(labels.value)}")
    if len(rectangles) > 1:
        if places or multimask or mask_input is not None:
            raise ValueError(
                f"{boxes.name} must be one box, got {len(rectangles)}; several take no points and no mask_input, and "
                "need multimask=False"
            )
        return [Prompt(box=box) for box in rectangles]
    earlier = None if mask_input is None else earlier_mask(mask_input, size)
    clicks = list(zip(places, on_object, strict=True))
    on, beside = ([place for place, good in clicks if good is side] for side in (True, False))
    return [Prompt(on, beside, rectangles[0] if rectangles else None, earlier)]


def earlier_mask(mask_input: Any, size: tuple[int, int]) -> Rle:
    """The mask of small logits (1, 256, 256) on the photo of ``size``. Raises ``ValueError`` for what is none."""
    try:
        logits = np.asarray(mask_input.cpu() if isinstance(mask_input, Tensor) else mask_input, dtype=np.float32)
    except (TypeError, ValueError):
        raise ValueError(f"mask_input must be numbers, got {shown(mask_input)}") from None
    if logits.shape not in ((1, SIDE, SIDE), (SIDE, SIDE)) or not np.isfinite(logits).all():
        raise ValueError(f"mask_input must be finite logits (1, {SIDE}, {SIDE}) as predict returns, got {logits.shape}")
    rows, cols = small_size(size)
    small = logits.reshape(SIDE, SIDE)[:rows, :cols] > 0
    if not small.any():
        raise ValueError("mask_input must have logits above 0 on the photo, got none")
    return resized(dict(coco_mask.encode(np.asfortranarray(small, dtype=np.uint8))), size)


def _either(name: str, value: Any, other: str, alias: Any) -> Argument:
    """An argument of two names, by the one that was used."""
    if value is not None and alias is not None:
        raise ValueError(f"{name} and {other} are one argument: give one of them")
    return Argument(name, value) if alias is None else Argument(other, alias)


def _labels(labels: Argument, points: str, count: int) -> list[bool]:
    """Which of ``count`` points lie on the object."""
    if labels.value is None:
        return [True] * count
    try:
        values = np.asarray(labels.value, dtype=np.float64).reshape(-1).tolist()
    except (TypeError, ValueError, OverflowError):
        values = []
    if len(values) != count or any(value not in (0, 1) for value in values):
        raise ValueError(f"{labels.name} must be a 0 or 1 for each of {count} {points}, got {shown(labels.value)}")
    return [value == 1 for value in values]

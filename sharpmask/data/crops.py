"""Where the windows of single training patches lie in a photo, by the paper's rule and by that of the released code.

"paper" follows Pinheiro et al., Learning to Segment Object Candidates, 2015, section 3.2 (joint learning), and
SharpMask, 2016, section 4. "released" follows the code that the authors published later.

Lengths of objects, jitter and distances are in window pixels; `scale` is in photo pixels per window pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .coco import Instance, Photo

Rule = Literal["paper", "released"]

# Range of log2(photo pixels per window pixel) of negatives with windows of 160 pixels: 40 to 1280 photo pixels.
_NEGATIVE_OCTAVES = (-2.0, 3.0)
_MIN_RELEASED_PATCH = 10  # photo pixels
_WINDOW_TRIES = 100


@dataclass(frozen=True)
class Crop:
    """A window centred at photo point (x, y), in pixels with the photo's corner at (0, 0)."""

    x: float
    y: float
    scale: float


class NoWindow(Exception):
    """A photo has no room for a window of the wanted kind, or none was found."""


class PaperWindows:
    """The paper's windows of `window` pixels.

    Its object side of 128 pixels, jitter of +-16 and distance of negatives of 32 hold in a patch of 224 pixels and
    are scaled to the window. The windows of negatives cover 40 to 1280 pixels of the photo.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self.object_side = window * 128 / 224
        self.jitter = window * 16 / 224
        self.far = window * 32 / 224

    def around(self, rng: np.random.Generator, photo: Photo, instance: Instance) -> Crop:
        """The object's canonical window, moved by up to `jitter` window pixels and scaled by up to a quarter octave."""
        x, y, side = _centre_and_side(instance)
        scale = side / self.object_side * 2 ** rng.uniform(-0.25, 0.25)
        dx, dy = rng.uniform(-self.jitter, self.jitter, 2) * scale
        return Crop(x + dx, y + dy, scale)

    def negative(self, rng: np.random.Generator, photo: Photo) -> Crop:
        """A window at least `far` window pixels on an axis, or an octave, away from every object's canonical one.

        The paper does not say where negatives come from. Here position is uniform and scale log-uniform. Crowds and
        objects too small to learn from keep negatives away too. Raises NoWindow where 100 tries find none.
        """
        centres, octaves = self._canonical(photo)
        for _ in range(_WINDOW_TRIES):
            octave = rng.uniform(*_NEGATIVE_OCTAVES) + np.log2(160 / self.window)
            centre = rng.uniform(0, 1, 2) * (photo.width, photo.height)
            distance = np.abs(centres - centre).max(1) / 2**octave
            if np.all((distance >= self.far) | (np.abs(octaves - octave) >= 1)):
                return Crop(float(centre[0]), float(centre[1]), float(2**octave))
        raise NoWindow

    def _canonical(self, photo: Photo) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The objects' canonical windows: centres (n, 2), x first, and log2 of the scales (n,)."""
        boxes = np.array([_centre_and_side(instance) for instance in photo.instances]).reshape(-1, 3)
        octaves: NDArray[np.float64] = np.log2(boxes[:, 2] / self.object_side)
        return boxes[:, :2], octaves


class ReleasedWindows(PaperWindows):
    """The released code's windows of `window` pixels, in patches of `side` pixels.

    Its object side of 92 pixels, jitter of +-16 and distance of negatives of 48 hold in a window of 160 pixels and
    are scaled to the window. Every window has its centre in the photo, and its patch at least 10 photo pixels.
    """

    def __init__(self, window: int, side: int) -> None:
        super().__init__(window)
        self.side = side
        self.object_side = -(-window * 128 // 224)  # rounded up
        self.jitter = window * 16 / 160
        self.far = window * 48 / 160

    def around(self, rng: np.random.Generator, photo: Photo, instance: Instance) -> Crop:
        return self._bounded(photo, super().around(rng, photo, instance))

    def positive(self, rng: np.random.Generator, photo: Photo) -> tuple[Crop, Instance]:
        """A window centred on an object, which may be a crowd, at the next lower quarter octave, without jitter.

        One of the quarter octaves that occur in the photo is drawn first, then an object of that quarter octave.
        """
        centres, octaves = self._canonical(photo)
        quarters = np.ceil(4 * octaves) - 1
        quarter = rng.choice(np.unique(quarters))
        chosen = rng.choice(np.flatnonzero(quarters == quarter))
        x, y = centres[chosen].tolist()
        return self._bounded(photo, Crop(x, y, float(2 ** (quarter / 4)))), photo.instances[chosen]

    def negative(self, rng: np.random.Generator, photo: Photo) -> Crop:
        """A window with its centre `far` window pixels away from every object within two and a half octaves.

        After 100 tries the last window is taken although it is too near. There is one change to the released code,
        which compares the window's centre in pixels of the window's scale with each object's centre in pixels of
        the object's scale: here both are in the window's scale.
        """
        centres, octaves = self._canonical(photo)
        quarters = np.ceil(4 * octaves) - 1
        low, high = _NEGATIVE_OCTAVES
        for _ in range(_WINDOW_TRIES):
            octave = rng.integers(round(4 * low), round(4 * high) + 1) / 4 + np.log2(160 / self.window)
            centre = rng.uniform(0, 1, 2) * (photo.width, photo.height)
            near = np.linalg.norm(centres - centre, axis=1) / 2**octave < self.far
            if not np.any(near & (np.abs(quarters / 4 - octave) <= 2.5)):
                break
        return self._bounded(photo, Crop(float(centre[0]), float(centre[1]), float(2**octave)))

    def _bounded(self, photo: Photo, crop: Crop) -> Crop:
        """The window with its centre moved into the photo and its patch enlarged to at least 10 photo pixels."""
        return Crop(
            min(max(crop.x, 0.0), photo.width),
            min(max(crop.y, 0.0), photo.height),
            max(crop.scale, _MIN_RELEASED_PATCH / self.side),
        )


def _centre_and_side(instance: Instance) -> tuple[float, float, float]:
    x, y, width, height = instance.box
    return x + width / 2, y + height / 2, max(width, height, 1.0)

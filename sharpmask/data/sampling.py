"""Single training patches around objects and beside them, as DeepMask samples them.

There are two rules. "paper" follows Pinheiro et al., Learning to Segment Object Candidates, 2015, section 3.2
(joint learning), and SharpMask, 2016, section 4 (windows of 160 pixels with 32 of context). "released" follows
the code that the authors published later; the functions below say how it differs.

A patch is a square of the photo with a side of (window + context) * `scale` pixels, resized to window + context
pixels. `scale` is in photo pixels per window pixel. Pixels outside the photo are 0.5.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import DataError
from ..geometry import GREY
from .augment import cut_mask, cut_square
from .coco import CocoFolder, Instance, Photo
from .mixture import Mixture
from .pool import Pool

Head = Literal["mask", "score"]
Rule = Literal["paper", "released"]
HEADS: tuple[Head, ...] = ("mask", "score")

# Smaller objects teach no mask: area in square pixels, either side of the box in pixels.
_MIN_AREA = 100
_MIN_SIDE = 5
_MIN_RELEASED_PATCH = 10  # photo pixels
# Range of log2(photo pixels per window pixel) of negatives with windows of 160 pixels: 40 to 1280 photo pixels.
_NEGATIVE_OCTAVES = (-2.0, 3.0)
_WINDOW_TRIES = 100
_PHOTO_TRIES = 100


class MaskSample(NamedTuple):
    """`image`: float32 (3, S, S) in [0, 1], S = window + context; `mask`: float32 (m, m), 0 or 1."""

    image: Tensor
    mask: Tensor


class ScoreSample(NamedTuple):
    """`image`: float32 (3, S, S) in [0, 1]; `label`: +1 where an object fits the window, else -1.

    `mask`: the object's as in a `MaskSample`, empty for a negative; None if the sampler has no `score_masks`.
    """

    image: Tensor
    label: int
    mask: Tensor | None = None


class _PatchBatch(TypedDict):
    kind: Head
    image: Tensor
    target: Tensor


class PatchBatch(_PatchBatch, total=False):
    """`image`: float32 (B, 3, S, S); `target`: float32, masks (B, m, m) of 0, 1 or labels (B,) of -1, +1.

    `masks`: those of score patches, float32 (B, m, m), of a sampler with `score_masks`.
    """

    masks: Tensor


@dataclass(frozen=True)
class _Crop:
    """A window centred at photo point (x, y), in pixels with the photo's corner at (0, 0)."""

    x: float
    y: float
    scale: float


class _NoWindow(Exception):
    """A photo has no room for a window of the wanted kind, or none was found."""


class PatchSampler:
    """Endless patches for one head. `sample(index)` depends only on `seed`, `index` and the folder.

    A mask patch shows an object. A category is drawn first, all with the same probability, then an object of it.
    Crowds and objects with an area below 100 pixels or a box side below 5 pixels are left out. Score patches are
    half positives, half negatives. Negatives come from completely annotated photos alone. Of a mixture, a folder is
    drawn before all else, by the weights.

    The paper's object side of 128 pixels, jitter of +-16 and distance of negatives of 32 hold in a patch of 224
    pixels and are scaled to `window`. Under "released" they are 92, 16 and 48 in a patch of 160. Under both rules
    the windows of negatives cover 40 to 1280 pixels of the photo. `score_masks`: score patches bring the masks of
    their objects.

    A damaged photo raises DataError. With the folder's `skip_bad` another photo is drawn instead, and the line is
    appended to `data.skipped` (a data loader's worker appends to its own copy). A folder of background alone, beside
    others, gives negatives, though none by the rule "released". The constructor raises DataError if another folder
    holds no object to learn from, or none of them a photo for negatives, and ValueError for arguments out of range.
    """

    def __init__(
        self,
        data: CocoFolder | Mixture,
        *,
        head: Head,
        window: int = 160,
        context: int = 32,
        mask_size: int = 112,
        rule: Rule = "paper",
        seed: int = 0,
        flip: bool = True,
        score_masks: bool = False,
    ) -> None:
        if head not in HEADS:
            raise ValueError(f"head must be 'mask' or 'score', got {head!r}")
        if rule not in ("paper", "released"):
            raise ValueError(f"rule must be 'paper' or 'released', got {rule!r}")
        for name, value, least in (
            ("window", window, 1),
            ("context", context, 0),
            ("mask_size", mask_size, 1),
            ("seed", seed, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self.data = Mixture.of(data)
        self.head: Head = head
        self.window = window
        self.side = window + context
        self.mask_size = mask_size
        self.rule: Rule = rule
        self.seed = seed
        self.flip = flip
        self.score_masks = score_masks
        if rule == "paper":
            self.object_side = window * 128 / 224
            self.jitter = window * 16 / 224
            self.far = window * 32 / 224
        else:
            self.object_side = -(-window * 128 // 224)  # rounded up
            self.jitter = window * 16 / 160
            self.far = window * 48 / 160
        empty = self.data.backgrounds
        if any(empty) and rule == "released" and head == "score":
            raise DataError(
                f"{self.data.folders[empty.index(True)].annotation_file}: must hold an object, since rule 'released' "
                "takes negatives from photos with objects, got none; leave the folder out, or take rule 'paper'"
            )
        pairs = list(zip(self.data.folders, empty, strict=True))
        self._objects = [[] if is_empty else _objects_by_category(folder) for folder, is_empty in pairs]
        share = np.array(self.data.weights) * ~np.array(empty)
        self._share = share / sum(share)
        self._populated = self._pool(complete=False, empty=False)  # photos of score positives by the released rule
        self._negative = self._pool(complete=True, empty=rule == "paper")
        if head == "score" and not self._negative.photos:
            raise DataError(
                f"{self.data.name}: must hold a completely annotated photo, since others give no negatives, got none; "
                "add such a data set (--dataset A B), or train masks alone (--score-share 0)"
            )

    def sample(self, index: int) -> MaskSample | ScoreSample:
        """Patch number `index`, 0 or more. Every call gives the same."""
        rng = np.random.default_rng([self.seed, HEADS.index(self.head), index])
        label = 1 if self.head == "mask" or rng.random() < 0.5 else -1
        for _ in range(_PHOTO_TRIES):
            try:
                return self._mask_sample(rng) if self.head == "mask" else self._score_sample(rng, label)
            except DataError as error:
                if not self.data.skip_bad:
                    raise
                self.data.leave_out(str(error))
            except _NoWindow:
                pass
        raise DataError(
            f"{self.data.name}: no usable {self.head} patch in {_PHOTO_TRIES} tries "
            "(photos are damaged, or objects leave no room for windows beside them)"
        )

    def batch(self, indices: Iterable[int]) -> PatchBatch:
        """The samples at `indices`, stacked."""
        samples = [self.sample(index) for index in indices]
        targets = [
            sample.mask if isinstance(sample, MaskSample) else torch.tensor(float(sample.label)) for sample in samples
        ]
        batch: PatchBatch = {
            "kind": self.head,
            "image": torch.stack([sample.image for sample in samples]),
            "target": torch.stack(targets),
        }
        if self.head == "score" and self.score_masks:
            batch["masks"] = torch.stack([sample.mask for sample in samples if sample.mask is not None])
        return batch

    def _mask_sample(self, rng: np.random.Generator) -> MaskSample:
        photo, instance = self._draw_object(rng)
        crop = self._jittered(rng, photo, instance)
        image = self._cut_image(photo, crop)
        mask = self._cut_mask(instance, crop)
        if self._flips(rng):
            image, mask = image[..., ::-1], mask[..., ::-1]
        return MaskSample(_tensor(image), _tensor(mask))

    def _score_sample(self, rng: np.random.Generator, label: int) -> ScoreSample:
        photo, crop, instance = self._score_window(rng, label)
        step = -1 if self._flips(rng) else 1
        image = _tensor(self._cut_image(photo, crop)[..., ::step])
        if not self.score_masks:
            return ScoreSample(image, label)
        empty = np.zeros((self.mask_size, self.mask_size), np.float32)
        mask = empty if instance is None else self._cut_mask(instance, crop)
        return ScoreSample(image, label, _tensor(mask[..., ::step]))

    def _score_window(self, rng: np.random.Generator, label: int) -> tuple[Photo, _Crop, Instance | None]:
        """The photo and window of a score patch, and a positive's object."""
        if self.rule == "paper":
            if label == -1:
                return *self._paper_negative(rng), None
            photo, instance = self._draw_object(rng)
            return photo, self._jittered(rng, photo, instance), instance
        photo = (self._populated if label == 1 else self._negative).photo(rng)
        if label == -1:
            return photo, self._released_negative(rng, photo), None
        return photo, *self._released_positive(rng, photo)

    def _flips(self, rng: np.random.Generator) -> bool:
        return bool(rng.random() < 0.5) and self.flip

    def _draw_object(self, rng: np.random.Generator) -> tuple[Photo, Instance]:
        number = int(rng.choice(len(self._share), p=self._share)) if len(self._share) > 1 else 0
        by_category = self._objects[number]
        places = by_category[int(rng.integers(len(by_category)))]
        photo_index, instance_index = places[int(rng.integers(len(places)))].tolist()
        photo = self.data.folders[number].photos[photo_index]
        return photo, photo.instances[instance_index]

    def _pool(self, *, complete: bool, empty: bool) -> Pool:
        """The photos that are annotated completely, if they must be, and have objects, unless they may be empty."""
        sets = [
            (folder.photos.where(lambda p: (p.complete or not complete) and (bool(p.instances) or empty)), weight)
            for folder, weight in zip(self.data.folders, self.data.weights, strict=True)
        ]
        return Pool.of([(photos, weight) for photos, weight in sets if photos])

    def _jittered(self, rng: np.random.Generator, photo: Photo, instance: Instance) -> _Crop:
        """The object's canonical window, moved by up to `jitter` window pixels and scaled by up to a quarter octave."""
        x, y, side = _centre_and_side(instance)
        scale = side / self.object_side * 2 ** rng.uniform(-0.25, 0.25)
        dx, dy = rng.uniform(-self.jitter, self.jitter, 2) * scale
        crop = _Crop(x + dx, y + dy, scale)
        return self._released_bounds(photo, crop) if self.rule == "released" else crop

    def _paper_negative(self, rng: np.random.Generator) -> tuple[Photo, _Crop]:
        """A window at least `far` window pixels on an axis, or an octave, away from every object's canonical one.

        The paper does not say where negatives come from. Here they come from any photo, also one without objects,
        with uniform position and log-uniform scale. Crowds and objects too small to learn from keep them away too.
        """
        photo = self._negative.photo(rng)
        centres, octaves = self._canonical(photo)
        for _ in range(_WINDOW_TRIES):
            octave = rng.uniform(*_NEGATIVE_OCTAVES) + np.log2(160 / self.window)
            centre = rng.uniform(0, 1, 2) * (photo.width, photo.height)
            distance = np.abs(centres - centre).max(1) / 2**octave
            if np.all((distance >= self.far) | (np.abs(octaves - octave) >= 1)):
                return photo, _Crop(float(centre[0]), float(centre[1]), float(2**octave))
        raise _NoWindow

    def _released_positive(self, rng: np.random.Generator, photo: Photo) -> tuple[_Crop, Instance]:
        """A window centred on an object, which may be a crowd, at the next lower quarter octave, without jitter.

        One of the quarter octaves that occur in the photo is drawn first, then an object of that quarter octave.
        """
        centres, octaves = self._canonical(photo)
        quarters = np.ceil(4 * octaves) - 1
        quarter = rng.choice(np.unique(quarters))
        chosen = rng.choice(np.flatnonzero(quarters == quarter))
        x, y = centres[chosen].tolist()
        return self._released_bounds(photo, _Crop(x, y, float(2 ** (quarter / 4)))), photo.instances[chosen]

    def _released_negative(self, rng: np.random.Generator, photo: Photo) -> _Crop:
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
        return self._released_bounds(photo, _Crop(float(centre[0]), float(centre[1]), float(2**octave)))

    def _released_bounds(self, photo: Photo, crop: _Crop) -> _Crop:
        """The window with its centre moved into the photo and its patch enlarged to at least 10 photo pixels."""
        return _Crop(
            min(max(crop.x, 0.0), photo.width),
            min(max(crop.y, 0.0), photo.height),
            max(crop.scale, _MIN_RELEASED_PATCH / self.side),
        )

    def _canonical(self, photo: Photo) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The objects' canonical windows: centres (n, 2), x first, and log2 of the scales (n,)."""
        boxes = np.array([_centre_and_side(instance) for instance in photo.instances]).reshape(-1, 3)
        octaves: NDArray[np.float64] = np.log2(boxes[:, 2] / self.object_side)
        return boxes[:, :2], octaves

    def _cut_image(self, photo: Photo, crop: _Crop) -> NDArray[np.float32]:
        photo_pixels = self.data.load(photo)
        patch = cut_square(photo_pixels, crop.x, crop.y, crop.scale * self.side, self.side, GREY)
        channels_first: NDArray[np.float32] = patch.transpose(2, 0, 1)
        return channels_first

    def _cut_mask(self, instance: Instance, crop: _Crop) -> NDArray[np.float32]:
        return cut_mask(instance.mask(), crop.x, crop.y, crop.scale * self.window, self.mask_size)


class PatchBatches(Dataset[PatchBatch]):
    """Whole batches of patches, each for one head: an endless sequence, cut from those of the samplers.

    Batch `number` depends only on the seeds and `number`. A training step takes `together` batches that follow each
    other, in one process or in several. All of them are for the same head: with probability `score_share` for the
    score. Give a data loader explicit numbers, so that a resumed run continues exactly where it stopped:
    `DataLoader(batches, sampler=range(first, last), batch_size=None, num_workers=...)`.

    Raises ValueError for arguments out of range, or if a sampler is needed but missing.
    """

    def __init__(
        self,
        mask: PatchSampler | None,
        score: PatchSampler | None,
        *,
        batch_size: int = 32,
        score_share: float = 0.5,
        seed: int = 0,
        together: int = 1,
    ) -> None:
        for argument, value, least in (("batch_size", batch_size, 1), ("seed", seed, 0), ("together", together, 1)):
            if value < least:
                raise ValueError(f"{argument} must be at least {least}, got {value}")
        if not 0 <= score_share <= 1:
            raise ValueError(f"score_share must be from 0 to 1, got {score_share}")
        for name, sampler, needed in (("mask", mask, score_share < 1), ("score", score, score_share > 0)):
            if needed and (sampler is None or sampler.head != name):
                raise ValueError(f"{name} must be a PatchSampler with head={name!r}, got {sampler!r}")
        self.mask = mask
        self.score = score
        self.batch_size = batch_size
        self.score_share = score_share
        self.seed = seed
        self.together = together

    def __getitem__(self, number: int) -> PatchBatch:
        step = number // self.together
        is_score = np.random.default_rng([self.seed, step]).random() < self.score_share
        sampler = self.score if is_score else self.mask
        assert sampler is not None  # The constructor checks this.
        return sampler.batch(range(number * self.batch_size, (number + 1) * self.batch_size))


def _centre_and_side(instance: Instance) -> tuple[float, float, float]:
    x, y, width, height = instance.box
    return x + width / 2, y + height / 2, max(width, height, 1.0)


def _objects_by_category(folder: CocoFolder) -> list[NDArray[np.int32]]:
    """By category, without empty ones: (photo, instance) positions of the objects that teach masks, int32 (n, 2).

    Raises DataError if there are none.
    """
    places: dict[int, list[tuple[int, int]]] = {category: [] for category in folder.categories}
    for photo_index, photo in enumerate(folder.photos):
        for instance_index, instance in enumerate(photo.instances):
            if not instance.crowd and instance.area >= _MIN_AREA and min(instance.box[2], instance.box[3]) >= _MIN_SIDE:
                places[instance.category_id].append((photo_index, instance_index))
    by_category = [np.array(found, np.int32) for found in places.values() if found]
    if not by_category:
        raise DataError(
            f"{folder.annotation_file}: must hold an object to learn from (no crowd, at least {_MIN_AREA} "
            f"square pixels, at least {_MIN_SIDE} pixels wide and high), got none"
        )
    return by_category


def _tensor(array: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))

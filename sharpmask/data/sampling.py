"""Single training patches around objects and beside them, as DeepMask samples them.

A patch is a square of the photo with a side of (window + context) * `scale` pixels, resized to window + context
pixels; the paper has windows of 160 pixels with 32 of context. Where patches lie follows one of two rules
(:mod:`sharpmask.data.crops`). Pixels outside the photo are 0.5.
"""

from __future__ import annotations

from collections.abc import Iterable
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
from .crops import Crop, NoWindow, PaperWindows, ReleasedWindows, Rule
from .mixture import Mixture
from .pool import Pool

Head = Literal["mask", "score"]
HEADS: tuple[Head, ...] = ("mask", "score")

# Smaller objects teach no mask: area in square pixels, either side of the box in pixels.
_MIN_AREA = 100
_MIN_SIDE = 5
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


class PatchSampler:
    """Endless patches for one head. `sample(index)` depends only on `seed`, `index` and the folder.

    A mask patch shows an object. A category is drawn first, all with the same probability, then an object of it.
    Crowds and objects with an area below 100 pixels or a box side below 5 pixels are left out. Score patches are
    half positives, half negatives. Negatives come from completely annotated photos alone. Of a mixture, a folder is
    drawn before all else, by the weights. `score_masks`: score patches bring the masks of their objects.

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
        _check_least(1, window=window, mask_size=mask_size)
        _check_least(0, context=context, seed=seed)
        self.data = Mixture.of(data)
        self.head: Head = head
        self.window = window
        self.side = window + context
        self.mask_size = mask_size
        self.seed = seed
        self.flip = flip
        self.score_masks = score_masks
        self.windows = PaperWindows(window) if rule == "paper" else ReleasedWindows(window, self.side)
        empty = self.data.backgrounds
        if rule == "released" and head == "score":
            _refuse_backgrounds(self.data)
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
            except NoWindow:
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
        crop = self.windows.around(rng, photo, instance)
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

    def _score_window(self, rng: np.random.Generator, label: int) -> tuple[Photo, Crop, Instance | None]:
        """The photo and window of a score patch, and a positive's object."""
        if label == -1:
            photo = self._negative.photo(rng)
            return photo, self.windows.negative(rng, photo), None
        if isinstance(self.windows, ReleasedWindows):
            photo = self._populated.photo(rng)
            return photo, *self.windows.positive(rng, photo)
        photo, instance = self._draw_object(rng)
        return photo, self.windows.around(rng, photo, instance), instance

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

    def _cut_image(self, photo: Photo, crop: Crop) -> NDArray[np.float32]:
        photo_pixels = self.data.load(photo)
        patch = cut_square(photo_pixels, crop.x, crop.y, crop.scale * self.side, self.side, GREY)
        channels_first: NDArray[np.float32] = patch.transpose(2, 0, 1)
        return channels_first

    def _cut_mask(self, instance: Instance, crop: Crop) -> NDArray[np.float32]:
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
        _check_least(1, batch_size=batch_size, together=together)
        _check_least(0, seed=seed)
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


def _check_least(least: int, **values: int) -> None:
    """Raise ValueError for a value below `least`."""
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def _refuse_backgrounds(data: Mixture) -> None:
    """Raise DataError for a folder of background alone, which has no photo for a negative of the released code."""
    for folder, is_empty in zip(data.folders, data.backgrounds, strict=True):
        if is_empty:
            raise DataError(
                f"{folder.annotation_file}: must hold an object, since rule 'released' takes negatives from photos "
                "with objects, got none; leave the folder out, or take rule 'paper'"
            )


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

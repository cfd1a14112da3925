"""Pasted objects: what they cover, what covers them, and when an object is too hidden to be learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sharpmask.data.coco import CocoFolder
from sharpmask.data.labels import Placed, visible
from sharpmask.data.mixture import Mixture
from sharpmask.data.pasting import Paster
from sharpmask.data.pool import Pool
from sharpmask.data.tiles import TileConfig

from .folders import squares

WINDOW, SIDE = 48, 128
WHOLE = slice(0, SIDE), slice(0, SIDE)


def target() -> Placed:
    """An object of 28 x 28 pixels in the middle."""
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[50:78, 50:78] = True
    return Placed(mask, 64, 64, 28, usable=True, crowd=False, pixels=28 * 28)


def paste(folder: CocoFolder, seed: int, **changes: Any) -> tuple[np.ndarray, Placed, Placed]:
    """A grey tile after pasting an object; the target and the pasted object."""
    config = TileConfig(**({"side": SIDE, "shapes": 0.0} | changes))
    paster = Paster(Mixture.of(folder), Pool(folder.photos), config, WINDOW)
    image, placed = np.full((SIDE, SIDE, 3), 128, np.uint8), [target()]
    paster.paste(np.random.default_rng(seed), image, WHOLE, placed)
    return image, *placed


@pytest.fixture
def folder(tmp_path: Path) -> CocoFolder:
    """One photo, partially annotated: its object is pasted all the same."""
    return CocoFolder(squares(tmp_path / "a", {"complete": False}))


def test_occluding_objects_cover_a_part_of_another(folder: CocoFolder) -> None:
    hidden = []
    for seed in range(40):
        image, below, above = paste(folder, seed, occluding=1.0)
        hidden.append(1 - below.mask.sum() / below.pixels)
        assert not (below.mask & above.mask).any() and above.mask.sum() == above.pixels
        assert (image[below.mask & ~_near(above.mask)] == 128).all()
    assert np.mean(np.array(hidden) > 0.02) > 0.8 and 0.15 < np.mean(hidden) < 0.6
    anywhere = [paste(folder, seed)[1].mask.sum() < 28 * 28 for seed in range(40)]
    assert np.mean(anywhere) < 0.8


def test_objects_behind_leave_the_others_as_they_are(folder: CocoFolder) -> None:
    covered = 0
    for seed in range(20):
        image, below, above = paste(folder, seed, occluding=1.0, behind=1.0)
        assert (below.mask == target().mask).all() and (image[below.mask] == 128).all()
        assert not (above.mask & below.mask).any() and (image[above.mask] != 128).any()
        covered += above.mask.sum() < above.pixels
    assert covered > 12


def test_sizes_of_pasted_objects_vary_as_far_as_asked(folder: CocoFolder) -> None:
    for octaves in (0.0, 1.0):
        sides = [paste(folder, seed, pasted_octaves=octaves)[2].pixels ** 0.5 for seed in range(40)]
        spread = np.log2(max(sides) / min(sides))
        assert spread < 0.2 if octaves == 0 else 1.2 < spread < 2.2


def test_objects_mostly_hidden_are_no_positives() -> None:
    half = target()
    half.mask[50:64] = False
    assert visible(half, 1.0).usable and visible(half, 0.5).usable
    assert not visible(half, 0.4).usable
    assert visible(half, 1.0).y == 71  # of what can be seen
    sliver = target()
    sliver.mask[:76] = False
    assert not visible(sliver, 1.0).usable, "fewer than 64 pixels"


def _near(mask: np.ndarray) -> np.ndarray:
    """The mask and the two pixels around it, which are blended."""
    return np.any([np.roll(mask, (dy, dx), (0, 1)) for dy in range(-2, 3) for dx in range(-2, 3)], axis=0)

"""Where windows lie, and their masks pasted into images: each pixel by itself, straight from the definition."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from sharpmask_kernels import Windows
from sharpmask_kernels.windows import grid_size, sample_positions, scaled_size

PAPER_SCALES = [2 ** (e / 2) for e in range(-5, 2)]


def windows_at(*cells: tuple[int, int, int]) -> Windows:
    """Windows at (scale, row, col); their image, which encoding ignores, is nonsense."""
    columns = torch.tensor(cells, dtype=torch.int64).reshape(-1, 3).T
    return Windows(torch.zeros(len(cells)), torch.full((len(cells),), -9), *columns)


def decode(rle: dict[str, Any]) -> npt.NDArray[np.bool_]:
    return coco.decode(rle).astype(bool)


# Sizes.


def test_windows_of_the_papers_pyramid() -> None:
    """A COCO photo of 480x640 pixels has 5203 windows of 160 pixels."""
    grids = [grid_size(*scaled_size(480, 640, s), 160) for s in PAPER_SCALES]
    assert grids == [(7, 9), (9, 11), (12, 16), (16, 21), (23, 30), (31, 41), (44, 58)]
    assert sum(rows * cols for rows, cols in grids) == 5203


@pytest.mark.parametrize("window", [16, 80, 112, 160, 224])
def test_grid_is_what_four_halvings_leave(window: int) -> None:
    for side in range(1, 200):
        cells = side + window
        for _ in range(4):
            cells = math.ceil(cells / 2)
        valid = cells - window // 16 + 1  # positions of a window in them
        assert grid_size(side, 1, window)[0] == valid
        assert grid_size(1, side, window)[1] == valid


@pytest.mark.parametrize(
    ("height", "width", "scale", "size"),
    [
        (5, 7, 0.5, (2, 4)),  # 2.5 and 3.5: halves go to the even side
        (480, 640, 2**-2.5, (85, 113)),
        (1, 3, 0.1, (1, 1)),  # never below one pixel
        (3, 5, 2.0, (6, 10)),
    ],
)
def test_scaled_size(height: int, width: int, scale: float, size: tuple[int, int]) -> None:
    assert scaled_size(height, width, scale) == size


# Positions.


def exact_position(pixel: int, length: int, scale: float, cell: int, side: int) -> Fraction:
    """Where an image pixel's centre lies in a window's logits: scaled, padded by S/2, counted from its first pixel."""
    scaled = max(1, round(length * scale))
    return Fraction(2 * pixel + 1, 2) * Fraction(scaled, length) - Fraction(1, 2) + Fraction(side, 2) - 16 * cell


@settings(deadline=None, max_examples=300)
@given(
    length=st.integers(1, 300),
    scale=st.floats(0.05, 4),
    cell=st.integers(-4, 60),
    half=st.integers(1, 60),
)
def test_sample_positions(length: int, scale: float, cell: int, half: int) -> None:
    side = 2 * half
    start, v = sample_positions(length, scale, cell, side)
    exact = {p: exact_position(p, length, scale, cell, side) for p in range(length)}
    tiny = Fraction(1, 10**9)
    surely = {p for p, x in exact.items() if tiny - Fraction(1, 2) < x < side - Fraction(1, 2) - tiny}
    perhaps = {p for p, x in exact.items() if -tiny - Fraction(1, 2) < x < side - Fraction(1, 2) + tiny}
    found = set(range(start, start + len(v)))
    assert surely <= found <= perhaps
    for p, x in zip(range(start, start + len(v)), v, strict=True):
        assert abs(x - float(min(max(exact[p], 0), side - 1))) < 1e-9


@pytest.mark.parametrize(("scale", "length"), [(1.0, 50), (2.0, 31), (0.5, 64), (0.25, 128), (4.0, 9)])
@pytest.mark.parametrize("side", [2, 6, 16, 22])
def test_edges_of_a_window_are_half_open(scale: float, length: int, side: int) -> None:
    """At these scales positions are exact, and with scale 2 and sides 2 and 6 they fall on the edges themselves."""
    for cell in range(-2, 9):
        exact = [exact_position(p, length, scale, cell, side) for p in range(length)]
        inside = [p for p, x in enumerate(exact) if -Fraction(1, 2) <= x < side - Fraction(1, 2)]
        start, v = sample_positions(length, scale, cell, side)
        assert list(range(start, start + len(v))) == inside
        assert v.tolist() == [float(min(max(exact[p], 0), side - 1)) for p in inside]


def test_a_window_is_centred_on_its_pixel() -> None:
    start, v = sample_positions(400, 1.0, 7, 160)
    assert (start, len(v)) == (7 * 16 - 80, 160)
    assert v[80] == 80


@pytest.mark.parametrize("cell", [-(10**6), -1, 60, 10**6])
def test_a_window_beyond_the_image_has_no_pixels(cell: int) -> None:
    assert len(sample_positions(100, 1.0, cell, 16)[1]) == 0

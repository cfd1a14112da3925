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

import sharpmask_kernels as kernels
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


# encode_windows.


def paste(
    logits: npt.NDArray[np.float64],
    image_size: tuple[int, int],
    scale: float,
    row: int,
    col: int,
    threshold: float,
) -> npt.NDArray[np.int8]:
    """1 foreground, 0 background, -1 where rounding may decide; pixel by pixel."""
    height, width = image_size
    side = len(logits)
    limit = math.log(threshold / (1 - threshold))
    ratios = [max(1, round(n * scale)) / n for n in image_size]
    out = np.zeros(image_size, dtype=np.int8)
    for y in range(height):
        v = (y + 0.5) * ratios[0] - 0.5 + side / 2 - 16 * row
        for x in range(width):
            u = (x + 0.5) * ratios[1] - 0.5 + side / 2 - 16 * col
            if min(abs(p - edge) for p in (v, u) for edge in (-0.5, side - 0.5)) < 1e-9:
                out[y, x] = -1
            elif -0.5 <= v < side - 0.5 and -0.5 <= u < side - 0.5:
                cv, cu = min(max(v, 0), side - 1), min(max(u, 0), side - 1)
                t, lf = int(cv), int(cu)
                b, r = min(t + 1, side - 1), min(lf + 1, side - 1)
                fv, fu = cv - t, cu - lf
                above = (1 - fu) * logits[t, lf] + fu * logits[t, r]
                below = (1 - fu) * logits[b, lf] + fu * logits[b, r]
                sample = (1 - fv) * above + fv * below
                out[y, x] = -1 if abs(sample - limit) < 1e-9 else sample > limit
    return out


def assert_pasted(rle: dict[str, Any], expected: npt.NDArray[np.int8]) -> None:
    mask = decode(rle)
    assert mask.shape == expected.shape
    assert np.array_equal(mask[expected >= 0], expected[expected >= 0] == 1)


@settings(deadline=None, max_examples=120)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    side=st.sampled_from([2, 4, 6, 16, 20, 32]),
    scale=st.floats(0.1, 3),
    row=st.integers(-2, 6),
    col=st.integers(-2, 6),
    threshold=st.sampled_from([0.05, 0.2, 0.5, 0.9]),
    seed=st.integers(0, 99),
)
def test_encode(
    height: int, width: int, side: int, scale: float, row: int, col: int, threshold: float, seed: int
) -> None:
    logits = 2 * torch.randn(1, side, side, generator=torch.Generator().manual_seed(seed))
    (rle,) = kernels.encode_windows(logits, windows_at((0, row, col)), (height, width), [scale], threshold=threshold)
    assert rle["size"] == [height, width]
    assert isinstance(rle["counts"], bytes)
    assert_pasted(rle, paste(logits[0].double().numpy(), (height, width), scale, row, col, threshold))


def test_encode_at_all_borders_of_an_image() -> None:
    """Every window of two scales over a small image, the corners and those beyond it among them."""
    size, scales, side = (37, 53), [0.5, 1.3], 32
    cells = [
        (i, row, col)
        for i, scale in enumerate(scales)
        for row in range(-2, grid_size(*scaled_size(*size, scale), side)[0] + 2)
        for col in range(-2, grid_size(*scaled_size(*size, scale), side)[1] + 2)
    ]
    logits = torch.randn(len(cells), side, side, generator=torch.Generator().manual_seed(0))
    encoded = kernels.encode_windows(logits, windows_at(*cells), size, scales)
    assert len(encoded) == len(cells)
    for rle, mask, (i, row, col) in list(zip(encoded, logits.double().numpy(), cells, strict=True))[::3]:
        assert_pasted(rle, paste(mask, size, scales[i], row, col, 0.2))
    # A wholly positive mask fills its window's part of the image, and nothing else.
    for rle, (i, row, col) in zip(
        kernels.encode_windows(torch.ones_like(logits), windows_at(*cells), size, scales), cells, strict=True
    ):
        area = math.prod(len(sample_positions(n, scales[i], c, side)[1]) for n, c in zip(size, (row, col), strict=True))
        assert decode(rle).sum() == area
    assert decode(encoded[0]).sum() == 0  # wholly outside


def test_encode_pixel_for_pixel_at_scale_one() -> None:
    logits = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(0))
    (rle,) = kernels.encode_windows(logits, windows_at((0, 1, 2)), (40, 50), [1.0], threshold=0.5)
    expected = np.zeros((40, 50), dtype=bool)
    expected[8:24, 24:40] = logits[0].numpy() > 0  # centred on (16, 32)
    assert np.array_equal(decode(rle), expected)


def test_threshold_is_a_strict_bound_on_the_probability() -> None:
    limit = math.log(0.2 / 0.8)
    logits = torch.tensor([limit - 1e-9, limit, limit + 1e-9, -1.0], dtype=torch.float64)
    logits = logits.repeat_interleave(4)[None, None].expand(1, 16, 16)
    (rle,) = kernels.encode_windows(logits, windows_at((0, 0, 1)), (16, 32), [1.0])
    assert decode(rle)[0, 8:24].tolist() == [False] * 8 + [True] * 8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_encode_any_dtype_and_layout(dtype: torch.dtype) -> None:
    logits = torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    windows = windows_at((0, 1, 1), (0, 2, 0))
    masks = logits.double().numpy()
    expected = [paste(masks[0], (33, 30), 0.9, 1, 1, 0.2), paste(masks[1], (33, 30), 0.9, 2, 0, 0.2)]
    strided = torch.empty(2, 64, 33, dtype=dtype)[:, ::2, 1:].copy_(logits)
    for given_ in (logits, strided, logits.mT.contiguous().mT, logits.clone().requires_grad_()):
        for rle, mask in zip(kernels.encode_windows(given_, windows, (33, 30), [0.9]), expected, strict=True):
            assert_pasted(rle, mask)


def test_nan_is_background() -> None:
    (rle,) = kernels.encode_windows(torch.full((1, 16, 16), math.nan), windows_at((0, 0, 0)), (20, 20), [1.0])
    assert decode(rle).sum() == 0


def test_encode_nothing() -> None:
    assert kernels.encode_windows(torch.zeros(0, 16, 16), windows_at(), (20, 20), [1.0]) == []

"""encode_windows: masks pasted into their image, pixel by pixel from the definition."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from sharpmask_kernels import Windows
from sharpmask_kernels.windows import grid_size, sample_positions, scaled_size

from .subjects import Subject, each, each_dtype


def windows_at(*cells: tuple[int, int, int], device: str) -> Windows:
    """Windows at (scale, row, col); their image, which encoding ignores, is nonsense."""
    columns = torch.tensor(cells, dtype=torch.int64, device=device).reshape(-1, 3).T
    nonsense = torch.full((len(cells),), -9, device=device)
    return Windows(torch.zeros(len(cells), device=device), nonsense, *columns)


def decode(rle: dict[str, Any]) -> npt.NDArray[np.bool_]:
    return coco.decode(rle).astype(bool)


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


@each("encode_windows")
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
    subject: Subject, height: int, width: int, side: int, scale: float, row: int, col: int, threshold: float, seed: int
) -> None:
    logits = 2 * torch.randn(1, side, side, generator=torch.Generator().manual_seed(seed))
    (rle,) = subject(
        logits.to(subject.device),
        windows_at((0, row, col), device=subject.device),
        (height, width),
        [scale],
        threshold=threshold,
    )
    assert rle["size"] == [height, width]
    assert isinstance(rle["counts"], bytes)
    assert_pasted(rle, paste(logits[0].double().numpy(), (height, width), scale, row, col, threshold))


@each("encode_windows")
def test_encode_at_all_borders_of_an_image(subject: Subject) -> None:
    """Every window of two scales over a small image, the corners and those beyond it among them."""
    size, scales, side = (37, 53), [0.5, 1.3], 32
    cells = [
        (i, row, col)
        for i, scale in enumerate(scales)
        for row in range(-2, grid_size(*scaled_size(*size, scale), side)[0] + 2)
        for col in range(-2, grid_size(*scaled_size(*size, scale), side)[1] + 2)
    ]
    logits = torch.randn(len(cells), side, side, generator=torch.Generator().manual_seed(0))
    encoded = subject(logits.to(subject.device), windows_at(*cells, device=subject.device), size, scales)
    assert len(encoded) == len(cells)
    for rle, mask, (i, row, col) in list(zip(encoded, logits.double().numpy(), cells, strict=True))[::3]:
        assert_pasted(rle, paste(mask, size, scales[i], row, col, 0.2))
    # A wholly positive mask fills its window's part of the image, and nothing else.
    for rle, (i, row, col) in zip(
        subject(
            torch.ones_like(logits, device=subject.device), windows_at(*cells, device=subject.device), size, scales
        ),
        cells,
        strict=True,
    ):
        area = math.prod(len(sample_positions(n, scales[i], c, side)[1]) for n, c in zip(size, (row, col), strict=True))
        assert decode(rle).sum() == area
    assert decode(encoded[0]).sum() == 0  # wholly outside


@each("encode_windows")
def test_encode_pixel_for_pixel_at_scale_one(subject: Subject) -> None:
    logits = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(0))
    (rle,) = subject(
        logits.to(subject.device), windows_at((0, 1, 2), device=subject.device), (40, 50), [1.0], threshold=0.5
    )
    expected = np.zeros((40, 50), dtype=bool)
    expected[8:24, 24:40] = logits[0].numpy() > 0  # centred on (16, 32)
    assert np.array_equal(decode(rle), expected)


@each_dtype("encode_windows", dtypes=[torch.float64])
def test_threshold_is_a_strict_bound_on_the_probability(subject: Subject, dtype: torch.dtype) -> None:
    limit = math.log(0.2 / 0.8)
    logits = torch.tensor([limit - 1e-9, limit, limit + 1e-9, -1.0], dtype=dtype)
    logits = logits.repeat_interleave(4)[None, None].expand(1, 16, 16)
    (rle,) = subject(logits.to(subject.device), windows_at((0, 0, 1), device=subject.device), (16, 32), [1.0])
    assert decode(rle)[0, 8:24].tolist() == [False] * 8 + [True] * 8


@each_dtype("encode_windows")
def test_encode_any_dtype_and_layout(subject: Subject, dtype: torch.dtype) -> None:
    logits = torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    windows = windows_at((0, 1, 1), (0, 2, 0), device=subject.device)
    masks = logits.double().numpy()
    expected = [paste(masks[0], (33, 30), 0.9, 1, 1, 0.2), paste(masks[1], (33, 30), 0.9, 2, 0, 0.2)]
    strided = torch.empty(2, 64, 33, dtype=dtype)[:, ::2, 1:].copy_(logits)
    for given_ in (logits, strided, logits.mT.contiguous().mT, logits.clone().requires_grad_()):
        for rle, mask in zip(subject(given_.to(subject.device), windows, (33, 30), [0.9]), expected, strict=True):
            assert_pasted(rle, mask)


@each("encode_windows")
def test_nan_is_background(subject: Subject) -> None:
    (rle,) = subject(
        torch.full((1, 16, 16), math.nan, device=subject.device),
        windows_at((0, 0, 0), device=subject.device),
        (20, 20),
        [1.0],
    )
    assert decode(rle).sum() == 0


@each("encode_windows")
def test_encode_nothing(subject: Subject) -> None:
    assert (
        subject(torch.zeros(0, 16, 16, device=subject.device), windows_at(device=subject.device), (20, 20), [1.0]) == []
    )

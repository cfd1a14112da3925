"""topk_windows: the ranking of all cells of all scales. PyTorch's own operations: there is no backend to choose."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sharpmask_kernels as kernels

from .inputs import DTYPES, Random, as_rows, channels_last
from .oracle import ranking
from .subjects import DEVICES

VALUES = st.sampled_from([math.nan, -math.inf, math.inf, -1.0, -0.0, 0.0, 0.5, 2.0])
devices = pytest.mark.parametrize("device", [pytest.param(d, marks=[pytest.mark.gpu] * (d == "cuda")) for d in DEVICES])


@devices
@settings(deadline=None, max_examples=150)
@given(st.data())
def test_order(device: str, data: st.DataObject) -> None:
    batch = data.draw(st.integers(0, 3))
    sides = st.tuples(st.integers(1, 4), st.integers(1, 4))
    grids = data.draw(st.lists(sides, min_size=1, max_size=3))
    dtype = data.draw(st.sampled_from(DTYPES))
    scores = []
    for h, w in grids:
        values = data.draw(st.lists(VALUES, min_size=batch * h * w, max_size=batch * h * w))
        scores.append(torch.tensor(values, dtype=dtype, device=device).reshape(batch, 1, h, w))
    cells = sum(h * w for h, w in grids)
    n = data.draw(st.integers(0, cells + 2))
    windows = kernels.topk_windows(scores, n)
    assert len(windows.score) == batch * min(n, cells)
    assert as_rows(windows) == ranking(scores, n)
    assert windows.score.dtype == torch.float32
    assert all(field.dtype == torch.int64 for field in windows[1:])


@devices
def test_many_cells_of_unequal_scales(device: str) -> None:
    random = Random(torch.float32, device=device)
    scores = [random(2, 1, 9, 13), channels_last(random(2, 1, 31, 17)), random(2, 1, 1, 1)]
    scores[0].requires_grad_()
    windows = kernels.topk_windows(scores, 200)
    assert as_rows(windows) == ranking(scores, 200)
    assert not windows.score.requires_grad


@devices
def test_rows_of_nan_come_last_with_score_minus_infinity(device: str) -> None:
    scores = torch.tensor([math.nan, 1.0, -5.0, math.nan], device=device).reshape(1, 1, 2, 2)
    windows = kernels.topk_windows([scores], 4)
    assert windows.score.tolist() == [1, -5, -math.inf, -math.inf]
    assert list(zip(windows.row.tolist(), windows.col.tolist(), strict=True)) == [(0, 1), (1, 0), (0, 0), (1, 1)]


def test_select_takes_the_same_rows_of_every_field() -> None:
    windows = kernels.topk_windows([Random(torch.float32)(1, 1, 3, 3)], 9)
    rows = as_rows(windows)
    assert as_rows(windows.select(slice(2, 5))) == rows[2:5]
    assert as_rows(windows.select(windows.row == 1)) == [row for row in rows if row[3] == 1]
    assert as_rows(windows.select(torch.tensor([8, 0]))) == [rows[8], rows[0]]

"""gather_windows: values and layouts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import sharpmask_kernels as kernels

from .inputs import FAR, LAYOUTS, SCATTERED, Random, array, channels_last, contiguous, windows_at
from .oracle import gather_windows
from .subjects import Subject, each, each_dtype

pytestmark = [pytest.mark.usefixtures("poisoned"), pytest.mark.grid]


@each_dtype("gather_windows")
@pytest.mark.parametrize(("size", "step"), [(1, 1), (3, 1), (4, 2), (9, 8), (2, 5)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_formula(
    subject: Subject, dtype: torch.dtype, size: int, step: int, layout: Callable[[Tensor], Tensor]
) -> None:
    random = Random(dtype, device=subject.device)
    maps = [layout(random(2, 3, 5, 7)), layout(random(2, 3, 11, 4))]
    windows = windows_at(*SCATTERED, device=subject.device)
    out = subject(maps, windows, size, step=step)
    expected = gather_windows([array(m) for m in maps], windows, size, step)
    assert np.array_equal(array(out), expected)  # no rounding
    assert out.dtype == dtype
    if size > 1:
        assert out.is_contiguous(memory_format=torch.channels_last) == (layout is channels_last)


@each("gather_windows")
@pytest.mark.parametrize("channels", [1, 2, 16, 19, 64])
@pytest.mark.parametrize("layout", [contiguous, channels_last])
def test_channels(subject: Subject, channels: int, layout: Callable[[Tensor], Tensor]) -> None:
    maps = [layout(Random(torch.float32, device=subject.device)(2, channels, 6, 9))]
    windows = windows_at((0, 0, 1, 2), (1, 0, -1, 4), (1, 0, 4, 7), device=subject.device)
    expected = gather_windows([array(m) for m in maps], windows, 5, 1)
    assert np.array_equal(array(subject(maps, windows, 5)), expected)


@each("gather_windows")
def test_maps_of_unlike_layouts(subject: Subject) -> None:
    random = Random(torch.float32, device=subject.device)
    maps = [layout(random(2, 3, 5 + i, 7)) for i, layout in enumerate(LAYOUTS)]
    windows = windows_at(*((n % 2, n % 4, n % 3 - 1, n % 5 - 1) for n in range(12)), device=subject.device)
    out = subject(maps, windows, 3)
    assert np.array_equal(array(out), gather_windows([array(m) for m in maps], windows, 3, 1))
    assert out.is_contiguous()


@each("gather_windows")
@settings(deadline=None, max_examples=40)
@given(st.data())
def test_any_window(subject: Subject, data: st.DataObject) -> None:
    batch, channels = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    sides = st.tuples(st.integers(1, 8), st.integers(1, 8))
    grids = data.draw(st.lists(sides, min_size=1, max_size=3))
    size, step = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4))
    cell = st.one_of(st.integers(-9, 9), st.integers(-FAR * 2, FAR * 2 - 1))
    window = st.tuples(st.integers(0, batch - 1), st.integers(0, len(grids) - 1), cell, cell)
    windows = windows_at(*data.draw(st.lists(window, max_size=6)), device=subject.device)
    layout = data.draw(st.sampled_from(LAYOUTS))
    random = Random(torch.float32, device=subject.device)
    maps = [layout(random(batch, channels, h, w)) for h, w in grids]
    out = subject(maps, windows, size, step=step)
    assert np.array_equal(array(out), gather_windows([array(m) for m in maps], windows, size, step))


@each("gather_windows")
def test_out_of_the_map_is_zero(subject: Subject) -> None:
    ones = torch.ones(1, 2, 3, 3, device=subject.device)
    cells = [(0, 0, -1, 0), (0, 0, 0, -1), (0, 0, 2, 2), (0, 0, -2, 0), (0, 0, 3, 0)]
    inside = [[[0, 0], [1, 1]], [[0, 1], [0, 1]], [[1, 0], [0, 0]], [[0, 0], [0, 0]], [[0, 0], [0, 0]]]
    out = subject(ones, windows_at(*cells, device=subject.device), 2)
    assert out[:, 0].tolist() == inside
    assert torch.equal(out[:, 0], out[:, 1])


@each("gather_windows")
def test_an_image_or_scale_that_there_is_not_reads_as_outside(subject: Subject) -> None:
    """On a GPU nobody looks at the windows' values; the op itself must not read out of bounds."""
    maps = [torch.ones(2, 3, 4, 4, device=subject.device, requires_grad=True) for _ in range(2)]
    cells = [(0, 0, 0, 0), (2, 0, 0, 0), (-1, 1, 0, 0), (0, 2, 0, 0), (1, -1, 0, 0), (0, 10**12, 0, 0), (1, 1, 0, 0)]
    _, *fields = windows_at(*cells, device=subject.device)
    out = torch.ops.sharpmask.gather_windows(maps, *fields, 2, 1, subject.backend)
    assert out.flatten(1).sum(1).tolist() == [12, 0, 0, 0, 0, 0, 12]
    first, second = torch.autograd.grad(out.sum(), maps)
    assert first.sum() == second.sum() == 12


@each("gather_windows")
@pytest.mark.parametrize("batch", [0, 2])
def test_nothing(subject: Subject, batch: int) -> None:
    maps = torch.ones(batch, 3, 4, 4, device=subject.device)
    assert subject(maps, windows_at(device=subject.device), 2).shape == (0, 3, 2, 2)


@each("gather_windows")
def test_one_tensor_is_a_list_of_one(subject: Subject) -> None:
    maps = Random(torch.float32, device=subject.device)(1, 2, 4, 4)
    windows = windows_at((0, 0, 1, 1), device=subject.device)
    assert torch.equal(subject(maps, windows, 2), subject([maps], windows, 2))


@each("gather_windows")
def test_the_papers_pyramid(subject: Subject) -> None:
    """Windows that topk_windows chose over several scales, at stages of 10 and 20 cells."""
    if subject.interpreted:
        count, channels, scales = 5, 3, (3, 2)
    else:
        count, channels, scales = 100, 16, (7, 9, 12, 16)
    random = Random(torch.float32, device=subject.device)
    windows = kernels.topk_windows([random(2, 1, side, side + 2) for side in scales], count)
    for step in (1, 2):
        maps = [channels_last(random(2, channels, (side + 9) * step, (side + 10) * step)) for side in scales]
        expected = gather_windows([array(m) for m in maps], windows, 10 * step, step)
        assert np.array_equal(array(subject(maps, windows, 10 * step, step=step)), expected)

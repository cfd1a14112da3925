"""merge_upsample, add_upsample, refine: values and layouts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sharpmask_kernels.checks import PADDING_MODES, UPSAMPLES

from .inputs import (
    LAYOUTS,
    LEVELS,
    MODES,
    SHAPES,
    Random,
    Size,
    arguments,
    assert_near,
    channels_last,
    expanded,
    without_biases,
)
from .oracle import FORMULAS, add_upsample, array, conv
from .subjects import REFINEMENT, Subject, each, each_dtype

pytestmark = [pytest.mark.usefixtures("poisoned"), pytest.mark.grid]


@each_dtype(*REFINEMENT)
@pytest.mark.parametrize(("upsample", "padding_mode"), MODES)
@pytest.mark.parametrize(("size", "widths"), SHAPES)
def test_formula(
    subject: Subject, dtype: torch.dtype, upsample: str, padding_mode: str, size: Size, widths: Size
) -> None:
    inputs = arguments(subject.op, Random(dtype, device=subject.device), size, widths)
    out = subject(*inputs, upsample=upsample, padding_mode=padding_mode)
    expected = FORMULAS[subject.op](*map(array, inputs), upsample, padding_mode)
    assert expected.shape == (size[0], widths[2], 2 * size[1], 2 * size[2])
    assert_near(out, expected, dtype)


@each(*REFINEMENT)
def test_defaults_are_the_papers_upsampling_and_plain_convolution(subject: Subject) -> None:
    inputs = arguments(subject.op, Random(torch.float32, device=subject.device), (1, 4, 5), (2, 3, 2))
    assert_near(subject(*inputs), FORMULAS[subject.op](*map(array, inputs), "bilinear", "zeros"), torch.float32)


@each(*REFINEMENT)
@pytest.mark.parametrize("upsample", UPSAMPLES)
def test_no_bias(subject: Subject, upsample: str) -> None:
    inputs = arguments(subject.op, Random(torch.float32, device=subject.device), (2, 3, 4), (2, 3, 2))
    out = subject(*without_biases(inputs), upsample=upsample)
    expected = FORMULAS[subject.op](*map(array, without_biases(inputs)), upsample, "zeros")
    assert_near(out, expected, torch.float32)


@each_dtype(*REFINEMENT, dtypes=[torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("upsample", "padding_mode"), MODES)
@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("second", LAYOUTS)
def test_layouts(
    subject: Subject,
    dtype: torch.dtype,
    upsample: str,
    padding_mode: str,
    first: Callable[[Tensor], Tensor],
    second: Callable[[Tensor], Tensor],
) -> None:
    a, b, *rest = arguments(subject.op, Random(dtype, device=subject.device), (2, 5, 3), (4, 2, 3))
    # Weights too come in all layouts.
    inputs = [first(a), second(b), *(second(x) if x.ndim == 4 and second is not expanded else x for x in rest)]
    before = [x.clone() for x in inputs]
    out = subject(*inputs, upsample=upsample, padding_mode=padding_mode)
    assert_near(out, FORMULAS[subject.op](*map(array, inputs), upsample, padding_mode), dtype)
    # channels_last if both maps are, and only then.
    both = first is channels_last and second is channels_last
    assert out.is_contiguous(memory_format=torch.channels_last) == both
    assert out.is_contiguous() != both
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))  # inputs are not written


@each(*REFINEMENT)
def test_contiguous_maps_that_are_also_channels_last_give_contiguous_ones(subject: Subject) -> None:
    # One channel, or one cell: such maps are both.
    for size, widths in (((2, 1, 1), (3, 2, 4)), ((2, 3, 4), (1, 1, 4))):
        a, b, *rest = arguments(subject.op, Random(torch.float32, device=subject.device), size, widths)
        assert subject(a, channels_last(b), *rest).is_contiguous()


@each(*REFINEMENT)
@pytest.mark.parametrize("level", range(4))
def test_the_papers_levels(subject: Subject, level: int) -> None:
    if subject.interpreted:
        # Whole, such a map would take the interpreter minutes: some rows of it, across which tiles end.
        batch, rows = 1, 2
    else:
        batch, rows = 2, LEVELS[level][0]
    side, kf, ks, km, ko = LEVELS[level]
    random = Random(torch.float32, device=subject.device)
    inputs = arguments(subject.op, random, (batch, rows, side), (ks, km, ko), feature_channels=kf)
    for mode in (("bilinear", "replicate"), ("nearest", "zeros")):
        out = subject(*inputs, upsample=mode[0], padding_mode=mode[1])
        # 1024 channels make the sums of the skip about ten times as long as elsewhere.
        assert_near(out, FORMULAS[subject.op](*map(array, inputs), *mode), torch.float32, slack=2)


@each(*REFINEMENT)
@settings(deadline=None, max_examples=25)
@given(
    size=st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 19)),
    widths=st.tuples(st.integers(1, 19), st.integers(1, 19), st.integers(1, 19)),
    upsample=st.sampled_from(UPSAMPLES),
    padding_mode=st.sampled_from(PADDING_MODES),
    layout=st.sampled_from(LAYOUTS[:3]),
)
def test_any_shape(
    subject: Subject,
    size: Size,
    widths: Size,
    upsample: str,
    padding_mode: str,
    layout: Callable[[Tensor], Tensor],
) -> None:
    if subject.interpreted:
        size = (min(size[0], 1), min(size[1], 5), min(size[2], 9))
    a, b, *rest = arguments(subject.op, Random(torch.float32, device=subject.device), size, widths)
    inputs = [layout(a), layout(b), *rest]
    out = subject(*inputs, upsample=upsample, padding_mode=padding_mode)
    assert_near(out, FORMULAS[subject.op](*map(array, inputs), upsample, padding_mode), torch.float32)


@each("merge_upsample")
def test_concatenation_is_a_sum_of_two_halves(subject: Subject) -> None:
    skip, mask, weight, bias = arguments(subject.op, Random(torch.float32, device=subject.device), (2, 5, 4), (3, 2, 4))
    horizontal = conv(array(skip), array(weight[:, :3]), array(bias), "replicate")
    expected = add_upsample(horizontal, array(mask), array(weight[:, 3:]), None, "bilinear", "replicate")
    assert_near(subject(skip, mask, weight, bias, padding_mode="replicate"), expected, torch.float32)

"""Gradients: against finite differences in float64, and against plain PyTorch in float64 for every dtype."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from sharpmask_kernels.checks import PADDING_MODES

from .inputs import (
    MODES,
    SCATTERED,
    Random,
    arguments,
    array,
    assert_near,
    channels_last,
    contiguous,
    sliced,
    windows_at,
)
from .oracle import PLAIN, plain_gather_windows
from .subjects import REFINEMENT, Subject, each, each_dtype

pytestmark = [pytest.mark.usefixtures("poisoned"), pytest.mark.grid]


def differ(out: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of ``out`` weighted by values that differ from cell to cell."""
    weight = torch.linspace(-1, 1, max(1, out.numel()), dtype=torch.float64, device=out.device)[: out.numel()]
    return list(torch.autograd.grad(out, inputs, weight.view(out.shape).to(out.dtype)))


def leaves(inputs: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Any]:
    return [x.detach().to(dtype or x.dtype).requires_grad_() for x in inputs]


@each_dtype(*REFINEMENT, dtypes=[torch.float64])
@pytest.mark.parametrize(("upsample", "padding_mode"), MODES)
def test_finite_differences(subject: Subject, dtype: torch.dtype, upsample: str, padding_mode: str) -> None:
    call = functools.partial(subject, upsample=upsample, padding_mode=padding_mode)
    for size in ((1, 2, 3), (2, 1, 1)):
        inputs = leaves(arguments(subject.op, Random(seed=1, device=subject.device), size, (2, 1, 2)))
        assert torch.autograd.gradcheck(call, inputs)


@each_dtype(*REFINEMENT)
@pytest.mark.parametrize(("upsample", "padding_mode"), MODES)
@pytest.mark.parametrize("layout", [contiguous, channels_last, sliced])
def test_gradients(
    subject: Subject, dtype: torch.dtype, upsample: str, padding_mode: str, layout: Callable[[Tensor], Tensor]
) -> None:
    given = arguments(subject.op, Random(dtype, seed=2, device=subject.device), (2, 5, 7), (5, 3, 4))
    if dtype.itemsize == 2:
        # Away from the kink of ReLU, on whose two sides rounding would give different gradients.
        given = [x.abs() for x in given]
    inputs = leaves([layout(x) if i < 2 else x for i, x in enumerate(given)])
    plain = leaves(given, torch.float64)
    found = differ(subject(*inputs, upsample=upsample, padding_mode=padding_mode), inputs)
    expected = differ(PLAIN[subject.op](*plain, upsample, padding_mode), plain)
    for x, y in zip(found, expected, strict=True):
        # The backward pass rounds as many maps again.
        assert_near(x, array(y), dtype, slack=2)
    for x in found[:2]:
        assert x.is_contiguous(
            memory_format=torch.channels_last if layout is channels_last else torch.contiguous_format
        )


@each_dtype("refine")
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("layout", [contiguous, channels_last, sliced])
@pytest.mark.parametrize(("size", "skip"), [((1, 6, 8), 16), ((2, 4, 2), 9), ((1, 5, 7), 20), ((0, 4, 4), 8)])
def test_wide_features(
    subject: Subject,
    dtype: torch.dtype,
    padding_mode: str,
    layout: Callable[[Tensor], Tensor],
    size: tuple[int, int, int],
    skip: int,
) -> None:
    random = Random(dtype, seed=3, device=subject.device)
    given = arguments("refine", random, size, (skip, 2, 2), feature_channels=70)
    given = [x.abs() for x in given]  # away from the kink of ReLU, as above
    inputs = leaves([layout(x) if x.ndim == 4 else x for x in given])
    plain = leaves(given, torch.float64)
    found = differ(subject(*inputs, padding_mode=padding_mode), inputs)
    expected = differ(PLAIN["refine"](*plain, "bilinear", padding_mode), plain)
    for x, y in zip(found, expected, strict=True):
        assert_near(x, array(y), dtype, slack=2)


@each(*REFINEMENT)
@pytest.mark.parametrize("size", [(0, 3, 2), (1, 1, 1), (1, 1, 9), (1, 17, 1)])
def test_gradients_of_thin_maps(subject: Subject, size: tuple[int, int, int]) -> None:
    given = arguments(subject.op, Random(torch.float32, device=subject.device), size, (2, 3, 2))
    inputs, plain = leaves(given), leaves(given, torch.float64)
    found, expected = differ(subject(*inputs), inputs), differ(PLAIN[subject.op](*plain, "bilinear", "zeros"), plain)
    for x, y in zip(found, expected, strict=True):
        assert_near(x, array(y), torch.float32, slack=2)


@each(*REFINEMENT)
def test_only_what_needs_a_gradient_gets_one(subject: Subject) -> None:
    given = arguments(subject.op, Random(torch.float32, device=subject.device), (1, 3, 4), (2, 3, 2))
    whole = leaves(given)
    expected = differ(subject(*whole), whole)
    choices = itertools.islice(itertools.product([False, True], repeat=len(given)), 1, None)
    if subject.interpreted:
        choices = (needs for needs in choices if sum(needs) == 1)
    for needs in choices:
        inputs = [x.detach().requires_grad_(need) for x, need in zip(given, needs, strict=True)]
        out = subject(*inputs)
        out.backward(_weights_like(out))
        for x, need, gradient in zip(inputs, needs, expected, strict=True):
            assert (x.grad is not None) == need
            if x.grad is not None:
                torch.testing.assert_close(x.grad, gradient)


def _weights_like(out: Tensor) -> Tensor:
    return torch.linspace(-1, 1, out.numel(), dtype=torch.float64, device=out.device).view(out.shape).to(out.dtype)


@each(*REFINEMENT)
def test_no_bias(subject: Subject) -> None:
    given = arguments(subject.op, Random(torch.float32, device=subject.device), (1, 4, 3), (2, 3, 2))

    def call(op: Callable[..., Tensor], maps_and_weights: Sequence[Tensor], *options: Any) -> Tensor:
        those = iter(maps_and_weights)
        return op(*(next(those) if x.ndim == 4 else None for x in given), *options)

    kept = [x for x in given if x.ndim == 4]
    inputs, plain = leaves(kept), leaves(kept, torch.float64)
    found = differ(call(subject, inputs), inputs)
    expected = differ(call(PLAIN[subject.op], plain, "bilinear", "zeros"), plain)
    for x, y in zip(found, expected, strict=True):
        assert_near(x, array(y), torch.float32, slack=2)


@each(*REFINEMENT)
def test_gradients_that_are_expanded_or_strided(subject: Subject) -> None:
    """``sum()`` sends back one value for all cells; a slice sends a gradient with gaps."""
    for reduce in (lambda out: out.sum(), lambda out: out[:, :, ::2, 1:].mT.square().sum()):
        given = arguments(subject.op, Random(torch.float32, device=subject.device), (2, 3, 4), (2, 3, 2))
        inputs, plain = leaves(given), leaves(given, torch.float64)
        reduce(subject(*inputs)).backward()
        reduce(PLAIN[subject.op](*plain, "bilinear", "zeros")).backward()
        for x, y in zip(inputs, plain, strict=True):
            assert_near(x.grad, array(y.grad), torch.float32, slack=2)


@each(*REFINEMENT)
def test_what_relu_stops_stays_stopped(subject: Subject) -> None:
    """A NaN that arrives where ReLU let nothing through goes no further; elsewhere it does."""
    given = arguments(subject.op, Random(torch.float32, device=subject.device), (1, 6, 6), (2, 2, 1))
    given = [x.abs() for x in given]
    given[-1] = torch.full_like(given[-1], -1e4)  # every sum is negative
    inputs = leaves(given)
    out = subject(*inputs, upsample="nearest")
    for gradient in torch.autograd.grad(out, inputs, torch.full_like(out, torch.nan)):
        assert (gradient == 0).all()


# gather_windows


@each_dtype("gather_windows", dtypes=[torch.float64])
@pytest.mark.parametrize("step", [1, 2])
def test_finite_differences_of_gathering(subject: Subject, dtype: torch.dtype, step: int) -> None:
    random = Random(device=subject.device)
    maps = leaves([random(2, 2, 3, 4), channels_last(random(2, 2, 5, 2))])
    windows = windows_at(*SCATTERED, device=subject.device)
    assert torch.autograd.gradcheck(lambda *maps: subject(maps, windows, 3, step=step), maps)


@each_dtype("gather_windows")
@pytest.mark.parametrize(("size", "step"), [(1, 1), (3, 1), (4, 2), (9, 8)])
@pytest.mark.parametrize("layout", [contiguous, channels_last, sliced])
def test_gradients_of_gathering(
    subject: Subject, dtype: torch.dtype, size: int, step: int, layout: Callable[[Tensor], Tensor]
) -> None:
    random = Random(dtype, device=subject.device)
    given = [random(2, 3, 5, 7), random(2, 3, 11, 4)]
    windows = windows_at(*SCATTERED, device=subject.device)
    maps, plain = leaves([layout(m) for m in given]), leaves(given, torch.float64)
    found = differ(subject(maps, windows, size, step=step), maps)
    expected = differ(plain_gather_windows(plain, windows, size, step), plain)
    for x, y in zip(found, expected, strict=True):
        assert_near(x, array(y), dtype, slack=2)
        assert x.is_contiguous(
            memory_format=torch.channels_last if layout is channels_last else torch.contiguous_format
        )


@each("gather_windows")
def test_only_maps_that_need_a_gradient_get_one(subject: Subject) -> None:
    given = [Random(torch.float32, device=subject.device)(2, 3, 5, 6) for _ in range(3)]
    windows = windows_at((0, 0, 0, 0), (1, 1, 1, 1), (0, 2, 1, 0), (1, 2, 1, 1), device=subject.device)
    for needs in itertools.islice(itertools.product([False, True], repeat=3), 1, None):
        maps = [x.detach().requires_grad_(need) for x, need in zip(given, needs, strict=True)]
        subject(maps, windows, 2).sum().backward()
        for i, (m, need) in enumerate(zip(maps, needs, strict=True)):
            assert (m.grad is not None) == need
            if m.grad is not None:
                assert m.grad.sum() == 12 * (windows.scale == i).sum()  # 3 channels, 2 x 2 cells


@each("gather_windows")
def test_gradients_of_no_windows_are_zero(subject: Subject) -> None:
    maps = torch.ones(2, 3, 4, 4, device=subject.device, requires_grad=True)
    subject(maps, windows_at(device=subject.device), 2).sum().backward()
    assert maps.grad is not None and (maps.grad == 0).all()


@each_dtype("gather_windows", dtypes=[torch.float16, torch.bfloat16])
def test_overlapping_windows_are_summed_in_fp32(subject: Subject, dtype: torch.dtype) -> None:
    # Ones added one by one to 2048 would be lost in either dtype.
    maps = torch.zeros(1, 1, 1, 1, dtype=dtype, device=subject.device, requires_grad=True)
    out = subject(maps, windows_at(*[(0, 0, 0, 0)] * 201, device=subject.device), 1)
    gradient = torch.ones_like(out)
    gradient[0] = 2048
    (found,) = torch.autograd.grad(out, maps, gradient)
    assert found == torch.tensor(2248.0).to(dtype)

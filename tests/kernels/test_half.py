"""fp16 and bf16 in the compiled module: every bit pattern and every kind of rounding, tested by sums of gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sharpmask_kernels.backends.cpu import gather_windows

DTYPES = [torch.float16, torch.bfloat16]


def summed(*values: Tensor) -> Tensor:
    """The sum of vectors in fp32, rounded once: the gradient of a map of one cell under a window for each of them."""
    zeros = torch.zeros(len(values), dtype=torch.int64)
    grad = torch.stack(values)[:, :, None, None]
    (gradient,) = gather_windows.gather_windows_backward(
        grad, zeros, zeros, zeros, zeros, 1, [1], [1], False, [True], 1
    )
    return gradient.flatten()


def all_values(dtype: torch.dtype) -> Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)


def assert_same(found: Tensor, expected: Tensor) -> None:
    nan = expected.isnan()
    assert torch.equal(found.isnan(), nan)
    assert torch.equal(found[~nan].view(torch.int16), expected[~nan].view(torch.int16))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_value_survives(dtype: torch.dtype) -> None:
    values = all_values(dtype)
    assert_same(summed(values), values + 0)  # a sum starts at 0, to which -0 adds nothing


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_are_rounded_to_nearest_even(dtype: torch.dtype) -> None:
    values = all_values(dtype)
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        others = values[torch.randperm(len(values), generator=generator)]
        assert_same(summed(values, others), (values.float() + others.float()).to(dtype))
    # The sum of neighbours lies halfway between two values: a tie. Of the largest, it overflows.
    neighbours = (values.view(torch.int16) + 1).view(dtype)
    assert_same(summed(values, neighbours), (values.float() + neighbours.float()).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_three_values_are_rounded_once(dtype: torch.dtype) -> None:
    one, tiny = torch.ones(1, dtype=dtype), torch.full((1,), torch.finfo(dtype).eps / 2, dtype=dtype)
    assert summed(one, tiny, tiny).item() == 1 + torch.finfo(dtype).eps  # one by one, both would be lost


def test_subnormals_of_fp16_do_not_depend_on_the_processors_mode() -> None:
    values = all_values(torch.float16)
    assert torch.set_flush_denormal(True), "this processor cannot flush subnormals"
    try:
        found = summed(values)
    finally:
        torch.set_flush_denormal(False)
    assert_same(found, values + 0)

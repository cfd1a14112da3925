"""scale_channels: the formula, and what PyTorch expects of an op."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from .inputs import LAYOUTS, Random, array, assert_near
from .subjects import Subject, each, each_dtype


@each_dtype("scale_channels")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 1, 1, 1), (0, 2, 3, 4)])
def test_formula(
    subject: Subject, dtype: torch.dtype, layout: Callable[[Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    random = Random(dtype, device=subject.device)
    maps, factor = layout(random(*shape)), random(shape[1])
    assert_near(subject(maps, factor), array(maps) * array(factor)[:, None, None], dtype)


@each_dtype("scale_channels", dtypes=[torch.float64])
def test_finite_differences(subject: Subject, dtype: torch.dtype) -> None:
    random = Random(dtype, device=subject.device)
    assert torch.autograd.gradcheck(subject, [random(2, 3, 2, 3).requires_grad_(), random(3).requires_grad_()])


@each("scale_channels")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(subject: Subject, layout: Callable[[Tensor], Tensor]) -> None:
    random = Random(torch.float32, device=subject.device)
    inputs = [layout(random(2, 3, 4, 5)).requires_grad_(), random(3).requires_grad_()]
    torch.library.opcheck(torch.ops.sharpmask.scale_channels.default, (*inputs, subject.backend))

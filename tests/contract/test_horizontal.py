"""horizontal: the formula, tiles that are not needed, and what PyTorch expects of an op."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from sharpmask_kernels.checks import PADDING_MODES

from . import oracle
from .inputs import LAYOUTS, Random, array, assert_near
from .oracle import Array
from .subjects import Subject, each, each_dtype

pytestmark = [pytest.mark.usefixtures("poisoned"), pytest.mark.grid]

Conv = tuple[Tensor, Tensor | None]
SLACK = 4
"""Up to three convolutions, of which the tolerance knows one."""


def chain(random: Random, *widths: int, biases: bool = True) -> list[Conv]:
    return [(random(b, a, 3, 3) / (3 * a**0.5), random(b) if biases else None) for a, b in itertools.pairwise(widths)]


def formula(feature: Tensor, convs: Sequence[Conv], padding_mode: str) -> Array:
    x = array(feature)
    for i, (weight, bias) in enumerate(convs):
        x = oracle.conv(oracle.relu(x) if i else x, array(weight), None if bias is None else array(bias), padding_mode)
    return x


@each_dtype("horizontal")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("widths", [(5, 3), (3, 9, 2), (4, 6, 5, 3)])
@pytest.mark.parametrize("biases", [True, False])
def test_formula(
    subject: Subject,
    dtype: torch.dtype,
    layout: Callable[[Tensor], Tensor],
    padding_mode: str,
    widths: tuple[int, ...],
    biases: bool,
) -> None:
    random = Random(dtype, device=subject.device)
    feature, convs = layout(random(2, widths[0], 9, 11)), chain(random, *widths, biases=biases)
    out = subject(feature, convs, padding_mode=padding_mode)
    assert_near(out, formula(feature, convs, padding_mode), dtype, SLACK)


@each("horizontal")
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (7, 1), (5, 70), (40, 17)])
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("widths", [(3, 2), (70, 33, 16, 9), (300, 8, 8)])
def test_any_size(subject: Subject, size: tuple[int, int], padding_mode: str, widths: tuple[int, ...]) -> None:
    random = Random(torch.float32, device=subject.device)
    feature, convs = random(1, widths[0], *size), chain(random, *widths)
    feature = feature.to(memory_format=torch.channels_last)
    out = subject(feature, convs, padding_mode=padding_mode)
    # The oracle sums in fp64, and a sum here has up to 2700 products.
    assert_near(out, formula(feature, convs, padding_mode), torch.float32, 3 * SLACK)


@each("horizontal")
@pytest.mark.parametrize("tile", [1, 3, 8, 100])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
def test_tiles_that_are_not_needed_are_zero(subject: Subject, tile: int, share: float, padding_mode: str) -> None:
    random = Random(torch.float32, device=subject.device)
    height, width = 21, 30
    feature, convs = random(2, 3, height, width), chain(random, 3, 4, 5, 2)
    ranks = torch.randperm(2 * -(-height // tile) * -(-width // tile), generator=random.generator)
    needed = (ranks < share * len(ranks)).view(2, -(-height // tile), -(-width // tile)).to(subject.device)
    out = subject(feature, convs, needed=needed, tile=tile, padding_mode=padding_mode)
    cells = np.kron(needed.cpu().numpy(), np.ones((tile, tile), dtype=bool))[:, None, :height, :width]
    expected = np.where(cells, formula(feature, convs, padding_mode), 0)
    assert_near(out, expected, torch.float32, SLACK)


@each("horizontal")
def test_needed_may_be_a_view(subject: Subject) -> None:
    random = Random(torch.float32, device=subject.device)
    feature, convs = random(3, 3, 8, 8), chain(random, 3, 2)
    needed = torch.rand(4, 4, generator=random.generator).to(subject.device) < 0.5
    out = subject(feature, convs, needed=needed.T.expand(3, 4, 4), tile=2)
    assert torch.equal(out, subject(feature, convs, needed=needed.T.repeat(3, 1, 1), tile=2))


@each("horizontal")
def test_nan_does_not_leave_its_tiles(subject: Subject) -> None:
    random = Random(torch.float32, device=subject.device)
    feature, convs = random(1, 3, 8, 8), chain(random, 3, 2)
    feature[0, 0, 1, 1] = float("nan")
    out = subject(feature, convs, needed=torch.tensor([[[False, True], [True, True]]], device=subject.device), tile=4)
    assert torch.isfinite(out).all()
    assert torch.isnan(subject(feature, convs)[0, :, :3, :3]).all()


@each("horizontal")
def test_no_images(subject: Subject) -> None:
    random = Random(torch.float32, device=subject.device)
    assert subject(random(0, 3, 4, 6), chain(random, 3, 5, 2)).shape == (0, 2, 4, 6)


@each("horizontal")
def test_weights_of_any_strides(subject: Subject) -> None:
    random = Random(torch.float32, device=subject.device)
    feature, convs = random(1, 3, 6, 7), chain(random, 3, 4, 2)
    strided = [(torch.stack([weight, weight], -1)[..., 0], bias) for weight, bias in convs]
    assert_near(subject(feature, strided), formula(feature, convs, "zeros"), torch.float32, SLACK)


@each("horizontal")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("some", [False, True])
def test_opcheck(subject: Subject, layout: Callable[[Tensor], Tensor], some: bool) -> None:
    random = Random(torch.float32, device=subject.device)
    weights, biases = zip(*chain(random, 3, 4, 2), strict=True)
    needed = torch.eye(2, device=subject.device, dtype=torch.bool)[None].repeat(2, 1, 1) if some else None
    arguments = (layout(random(2, 3, 4, 4)), list(weights), list(biases), "zeros", needed, 2, subject.backend)
    torch.library.opcheck(torch.ops.sharpmask.horizontal.default, arguments)


@each("horizontal")
def test_gradients_are_refused(subject: Subject) -> None:
    random = Random(torch.float32, device=subject.device)
    out = subject(random(1, 3, 4, 4).requires_grad_(), chain(random, 3, 2))
    with pytest.raises(NotImplementedError, match="inference only"):
        out.sum().backward()

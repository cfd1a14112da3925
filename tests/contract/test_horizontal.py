"""horizontal: the formula, tiles that are not needed, gradients, and what PyTorch expects of an op."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sharpmask_kernels.checks import PADDING_MODES

from . import oracle
from .inputs import LAYOUTS, Random, array, assert_near, channels_last, contiguous, sliced
from .oracle import Array
from .subjects import Subject, each, each_dtype

pytestmark = [pytest.mark.usefixtures("poisoned"), pytest.mark.grid]

Conv = tuple[Tensor, Tensor | None]
SLACK = 4
"""Up to three convolutions, of which the tolerance knows one."""


def chain(random: Random, *widths: int, biases: bool = True) -> list[Conv]:
    return [(random(b, a, 3, 3) / (3 * a**0.5), random(b) if biases else None) for a, b in itertools.pairwise(widths)]


def slow(subject: Subject, size: Sequence[int], widths: Sequence[int]) -> bool:
    """Whether an interpreter would take seconds; the kernels' own tests have such sizes."""
    products = math.prod(size) * sum(map(math.prod, itertools.pairwise(widths)))
    return subject.interpreted and (max(widths) > 16 or products > 5000)


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
    if slow(subject, size, widths):
        return
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
@pytest.mark.parametrize("widths", [(3, 4, 5, 2), (70, 33, 5, 2)])
def test_tiles_that_are_not_needed_are_zero(
    subject: Subject, tile: int, share: float, padding_mode: str, widths: tuple[int, ...]
) -> None:
    if subject.interpreted and widths[0] > 3:
        return
    random = Random(torch.float32, device=subject.device)
    height, width = 21, 30
    feature, convs = random(2, widths[0], height, width), chain(random, *widths)
    ranks = torch.randperm(2 * -(-height // tile) * -(-width // tile), generator=random.generator)
    needed = (ranks < share * len(ranks)).view(2, -(-height // tile), -(-width // tile)).to(subject.device)
    out = subject(feature, convs, needed=needed, tile=tile, padding_mode=padding_mode)
    cells = np.kron(needed.cpu().numpy(), np.ones((tile, tile), dtype=bool))[:, None, :height, :width]
    expected = np.where(cells, formula(feature, convs, padding_mode), 0)
    assert_near(out, expected, torch.float32, 2 * SLACK)


@each("horizontal")
def test_needed_may_be_a_view(subject: Subject) -> None:
    random = Random(torch.float32, device=subject.device)
    feature, convs = random(3, 3, 8, 8), chain(random, 3, 2)
    needed = torch.rand(4, 4, generator=random.generator).to(subject.device) < 0.5
    out = subject(feature, convs, needed=needed.T.expand(3, 4, 4), tile=2)
    assert torch.equal(out, subject(feature, convs, needed=needed.T.repeat(3, 1, 1), tile=2))


@each("horizontal")
def test_tiles_may_be_larger_than_the_map(subject: Subject) -> None:
    random = Random(torch.float32, device=subject.device)
    given = leaves(random(2, 3, 4, 5), chain(random, 3, 2), torch.float32)
    expected = leaves(*given, torch.float64)
    needed = torch.tensor([True, False], device=subject.device).view(2, 1, 1)
    found = gradients(subject(*given, needed=needed, tile=2**40), tensors(*given))
    wanted = gradients(plain(*expected, "zeros", needed, 5), tensors(*expected))
    for x, y in zip(found, wanted, strict=True):
        assert_near(x, array(y), torch.float32, SLACK)


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


def some_tiles(batch: int, height: int, width: int, tile: int, device: str) -> Tensor:
    """A rectangle of tiles within each map, with a hole in that of the last."""
    needed = torch.zeros(batch, -(-height // tile), -(-width // tile), dtype=torch.bool, device=device)
    needed[:, 1:3, 1:4] = True
    needed[-1:, 1, 2] = False
    return needed


def plain(feature: Tensor, convs: Sequence[Conv], padding_mode: str, needed: Tensor | None, tile: int) -> Tensor:
    x = oracle.plain_horizontal(feature, convs, padding_mode)
    if needed is None:
        return x
    cells = torch.kron(needed.float(), torch.ones(1, tile, tile, device=x.device))[:, None] > 0
    return torch.where(cells[:, :, : x.shape[2], : x.shape[3]], x, 0)


def tensors(feature: Tensor, convs: Sequence[Conv]) -> list[Tensor]:
    return [feature, *(x for conv in convs for x in conv if x is not None)]


def gradients(out: Tensor, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """Of ``out`` weighted by values that differ from cell to cell."""
    weights = torch.linspace(-1, 1, max(out.numel(), 1), dtype=torch.float64, device=out.device)[: out.numel()]
    return torch.autograd.grad(out, inputs, weights.view(out.shape).to(out.dtype))


def leaves(feature: Tensor, convs: Sequence[Conv], dtype: torch.dtype) -> tuple[Tensor, list[Conv]]:
    def leaf(x: Tensor | None) -> Any:
        return None if x is None else x.detach().to(dtype).requires_grad_()

    return leaf(feature), [(leaf(weight), leaf(bias)) for weight, bias in convs]


@each_dtype("horizontal", dtypes=[torch.float64])
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("widths", [(2, 1), (1, 3, 2)])
@pytest.mark.parametrize("some", [False, True])
def test_finite_differences(
    subject: Subject, dtype: torch.dtype, padding_mode: str, widths: tuple[int, ...], some: bool
) -> None:
    random = Random(dtype, seed=1, device=subject.device)
    feature, convs = leaves(random(2, widths[0], 3, 4), chain(random, *widths), dtype)
    needed = torch.eye(2, device=subject.device, dtype=torch.bool)[None].repeat(2, 1, 1) if some else None

    def run(feature: Tensor, *parameters: Tensor) -> Tensor:
        pairs = list(zip(parameters[::2], parameters[1::2], strict=True))
        out: Tensor = subject(feature, pairs, padding_mode=padding_mode, needed=needed, tile=2)
        return out

    assert torch.autograd.gradcheck(run, tensors(feature, convs))


@each_dtype("horizontal")
@pytest.mark.parametrize("layout", [contiguous, channels_last, sliced])
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("widths", [(5, 3), (3, 4, 6, 2), (70, 34, 25, 3), (9, 40)])
@pytest.mark.parametrize("some", [False, True])
@pytest.mark.parametrize("biases", [True, False])
def test_gradients(
    subject: Subject,
    dtype: torch.dtype,
    layout: Callable[[Tensor], Tensor],
    padding_mode: str,
    widths: tuple[int, ...],
    some: bool,
    biases: bool,
) -> None:
    if slow(subject, (2, 11, 13), widths):
        return
    random = Random(dtype, seed=2, device=subject.device)
    feature, convs = random(2, widths[0], 11, 13), chain(random, *widths, biases=biases)
    if dtype.itemsize == 2:
        # Away from the kink of ReLU, on whose two sides rounding would give different gradients.
        feature, convs = feature.abs(), [(w.abs(), None if b is None else b.abs()) for w, b in convs]
    needed = some_tiles(2, 11, 13, 3, subject.device) if some else None
    given, expected = leaves(layout(feature), convs, dtype), leaves(feature, convs, torch.float64)
    out = subject(*given, padding_mode=padding_mode, needed=needed, tile=3)
    found = gradients(out, tensors(*given))
    wanted = gradients(plain(*expected, padding_mode, needed, 3), tensors(*expected))
    for x, y in zip(found, wanted, strict=True):
        assert_near(x, array(y), dtype, 4 * SLACK)  # sums of up to 630 products, three in a row
    form = torch.channels_last if layout is channels_last else torch.contiguous_format
    assert found[0].is_contiguous(memory_format=form)


@each("horizontal")
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (17, 1), (6, 31)])
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("widths", [(3, 2), (66, 33, 5)])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_gradients_of_any_size(
    subject: Subject, size: tuple[int, int], padding_mode: str, widths: tuple[int, ...], batch: int
) -> None:
    if slow(subject, (batch, *size), widths):
        return
    random = Random(torch.float32, seed=3, device=subject.device)
    given = leaves(random(batch, widths[0], *size), chain(random, *widths), torch.float32)
    expected = leaves(*given, torch.float64)
    found = gradients(subject(*given, padding_mode=padding_mode), tensors(*given))
    wanted = gradients(plain(*expected, padding_mode, None, 1), tensors(*expected))
    for x, y in zip(found, wanted, strict=True):
        assert_near(x, array(y), torch.float32, 4 * SLACK)


@each("horizontal")
@pytest.mark.parametrize("widths", [(3, 4, 2), (20, 30, 28)])
def test_only_what_needs_a_gradient_gets_one(subject: Subject, widths: tuple[int, ...]) -> None:
    if slow(subject, (5, 6), widths):
        return
    random = Random(torch.float32, seed=4, device=subject.device)
    feature, convs = random(1, widths[0], 5, 6), chain(random, *widths)
    needed = torch.ones(1, 3, 3, device=subject.device, dtype=torch.bool)
    needed[:, 0] = False
    whole = leaves(feature, convs, torch.float32)
    expected = gradients(subject(*whole, needed=needed, tile=2), tensors(*whole))
    choices = itertools.islice(itertools.product([False, True], repeat=len(expected)), 1, None)
    for needs in choices if not subject.interpreted else [(True, *[False] * 4), (False, False, True, True, False)]:
        given, pairs = leaves(feature, convs, torch.float32)
        inputs = [x.requires_grad_(need) for x, need in zip(tensors(given, pairs), needs, strict=True)]
        out = subject(given, pairs, needed=needed, tile=2)
        found = gradients(out, [x for x in inputs if x.requires_grad])
        for x, y in zip(found, itertools.compress(expected, needs), strict=True):
            torch.testing.assert_close(x, y)


@each("horizontal")
@pytest.mark.parametrize("widths", [(3, 4, 2), (20, 30, 28)])
def test_nothing_comes_back_from_tiles_that_are_not_needed(subject: Subject, widths: tuple[int, ...]) -> None:
    if slow(subject, (8, 8), widths):
        return
    random = Random(torch.float32, seed=5, device=subject.device)
    feature, convs = leaves(random(1, widths[0], 8, 8), chain(random, *widths), torch.float32)
    needed = torch.zeros(1, 4, 4, device=subject.device, dtype=torch.bool)
    inputs = tensors(feature, convs)
    out = subject(feature, convs, needed=needed, tile=2)
    assert all((x == 0).all() for x in torch.autograd.grad(out, inputs, torch.full_like(out, torch.nan)))
    needed[0, 0, 0] = True
    out = subject(feature, convs, needed=needed, tile=2)
    back = torch.full_like(out, torch.nan)
    back[:, :, :2, :2] = 1
    found = torch.autograd.grad(out, inputs, back)
    assert all(torch.isfinite(x).all() for x in found)
    reach = 2 + len(convs)
    assert (found[0][:, :, reach:] == 0).all() and (found[0][:, :, :, reach:] == 0).all() and found[0].any()


@each("horizontal")
def test_gradients_that_are_expanded_or_strided(subject: Subject) -> None:
    """``sum()`` sends back one value for all cells; a slice sends a gradient with gaps."""
    for reduce in (lambda out: out.sum(), lambda out: out[:, :, ::2, 1:].mT.square().sum()):
        random = Random(torch.float32, device=subject.device)
        given = leaves(random(2, 3, 5, 4), chain(random, 3, 5, 2 if subject.interpreted else 26), torch.float32)
        expected = leaves(*given, torch.float64)
        reduce(subject(*given)).backward()
        reduce(plain(*expected, "zeros", None, 1)).backward()
        for x, y in zip(tensors(*given), tensors(*expected), strict=True):
            assert_near(x.grad, array(y.grad), torch.float32, 2 * SLACK)


@each("horizontal")
def test_what_a_backward_keeps(subject: Subject) -> None:
    """The inputs, and the maps between the convolutions."""
    random = Random(torch.float32, device=subject.device)
    feature, convs = leaves(channels_last(random(1, 3, 6, 7)), chain(random, 3, 8, 5, 2), torch.float32)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        subject(feature.detach(), convs)
    own = {x.data_ptr() for x in tensors(feature, convs)}
    assert sum(x.numel() for x in kept if x.data_ptr() not in own) == (8 + 5) * 6 * 7


@each("horizontal")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("some", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_opcheck(subject: Subject, layout: Callable[[Tensor], Tensor], some: bool, grad: bool) -> None:
    random = Random(torch.float32, device=subject.device)
    weights, biases = (list(x) for x in zip(*chain(random, 3, 4, 2), strict=True))
    needed = torch.eye(2, device=subject.device, dtype=torch.bool)[None].repeat(2, 1, 1) if some else None
    feature = layout(random(2, 3, 4, 4)).requires_grad_(grad)
    for x in (*weights, *biases):
        x.requires_grad_(grad)
    arguments = (feature, weights, biases, "zeros", needed, 2, grad, subject.backend)
    torch.library.opcheck(torch.ops.sharpmask.horizontal.default, arguments)


@each("horizontal")
@pytest.mark.parametrize("layout", [contiguous, channels_last])
def test_opcheck_backward(subject: Subject, layout: Callable[[Tensor], Tensor]) -> None:
    random = Random(torch.float32, device=subject.device)
    feature = layout(random(2, 3, 4, 4))
    weights, biases = (list(x) for x in zip(*chain(random, 3, 4, 2), strict=True))
    needed = torch.eye(2, device=subject.device, dtype=torch.bool)[None].repeat(2, 1, 1)
    ops = torch.ops.sharpmask
    out, hidden = ops.horizontal(feature, weights, biases, "zeros", needed, 2, True, subject.backend)
    for needs in ([True] * 5, [False, False, True, True, False]):
        options = ("zeros", needed, 2, layout is channels_last, needs, subject.backend)
        arguments = (layout(torch.ones_like(out)), hidden, feature, weights, *options)
        torch.library.opcheck(ops.horizontal_backward.default, arguments)


@each("horizontal")
def test_double_backward_is_refused(subject: Subject) -> None:
    random = Random(torch.float32, device=subject.device)
    feature, convs = leaves(random(1, 3, 4, 4), chain(random, 3, 2), torch.float32)
    inputs = tensors(feature, convs)
    first, *_ = torch.autograd.grad(subject(feature, convs).square().sum(), inputs, create_graph=True)
    with pytest.raises(NotImplementedError, match="horizontal has no second derivative"):
        first.sum().backward()


@each("horizontal")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(subject: Subject, dtype: torch.dtype) -> None:
    random = Random(torch.float32, device=subject.device)
    # Positive values, so that rounding does not change what ReLU lets through.
    given = random(1, 3, 5, 4).abs(), [(w.abs(), b.abs()) for w, b in chain(random, 3, 4, 2) if b is not None]
    cast, expected = leaves(*given, torch.float32), leaves(*given, torch.float32)
    with torch.autocast(subject.device, dtype=dtype):
        out = subject(*cast)
    assert out.dtype == dtype
    out.sum().backward()
    subject(*expected).sum().backward()
    for x, y in zip(tensors(*cast), tensors(*expected), strict=True):
        assert x.grad is not None and x.grad.dtype == torch.float32 and y.grad is not None
        torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=0.03 * float(y.grad.abs().max()))


@each("horizontal")
def test_compiled_training_step(subject: Subject) -> None:
    if subject.interpreted:
        return
    torch._dynamo.reset()
    random = Random(torch.float32, device=subject.device)
    feature, convs = leaves(random(2, 3, 6, 8), chain(random, 3, 5, 2), torch.float32)
    needed = some_tiles(2, 6, 8, 2, subject.device)

    def run(feature: Tensor) -> Tensor:
        out: Tensor = subject(feature + 1, convs, needed=needed, tile=2).square()
        return out

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    found, expected = (gradients(f(feature), tensors(feature, convs)) for f in (compiled, run))
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y)

"""upsample_merge and upsample_add: values, layouts, gradients, and what a backward keeps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sharpmask_kernels.checks import ACTIVATIONS, DECODER_UPSAMPLES, PADDING_MODES

from . import oracle
from .inputs import LAYOUTS, Random, array, assert_near, channels_last, contiguous, expanded, sliced
from .oracle import Array
from .subjects import Subject, each, each_dtype
from .test_gradients import differ, leaves
from .test_hostile import HOSTILE
from .test_nonfinite import SPOILED, VALUES, assert_gradients_finite_as, assert_non_finite_as

pytestmark = [pytest.mark.usefixtures("poisoned"), pytest.mark.grid(whole=False)]

OPS = ("upsample_merge", "upsample_add")
Size = tuple[int, int, int]
SLACK = 3
"""A sum of up to 650 products, of which the tolerance knows 117, and an activation."""


class Options(NamedTuple):
    """In the order of the oracle's functions."""

    mask_first: bool = True
    upsample: str = "nearest"
    padding_mode: str = "zeros"
    activation: str = "relu"

    def of(self, op: str) -> dict[str, Any]:
        """The keywords that the op has."""
        names = self._fields if op == "upsample_merge" else ("upsample", "activation")
        return {name: getattr(self, name) for name in names}


MIXED = [
    Options(),
    Options(False, "bilinear", "replicate", "elu"),
    Options(True, "bilinear_corners", "zeros", "leaky_relu"),
    Options(False, "nearest", "replicate", "silu"),
    Options(False, "nearest", "zeros", "none"),
    Options(True, "bilinear", "zeros", "none"),
    Options(False, "bilinear_corners", "replicate", "relu"),
]

# (batch, height, width) of the mask; channels of mask, skip (0: there is none), result.
SHAPES: list[tuple[Size, Size]] = [
    ((2, 5, 7), (7, 5, 3)),
    ((1, 1, 1), (1, 1, 1)),
    ((2, 1, 1), (3, 0, 5)),
    ((1, 1, 6), (2, 3, 1)),
    ((3, 7, 1), (13, 1, 2)),
    ((1, 6, 8), (8, 4, 4)),
    ((1, 9, 4), (4, 0, 16)),
    ((0, 4, 3), (2, 3, 5)),
    ((1, 3, 5), (40, 33, 30)),
    ((2, 4, 9), (17, 0, 33)),
]

GRADIENT_SHAPES = [*SHAPES[:1], *SHAPES[2:3], *SHAPES[7:9], ((2, 5, 7), (24, 25, 26))]


def arguments(op: str, random: Random, size: Size, widths: Size) -> list[Any]:
    (batch, height, width), (km, ks, ko) = size, widths
    mask = random(batch, km, height, width)
    if op == "upsample_add":
        return [mask, random(batch, km, 2 * height, 2 * width)]
    skip = random(batch, ks, 2 * height, 2 * width) if ks else None
    return [mask, skip, random(ko, km + ks, 3, 3), random(ko)]


def slow(subject: Subject, size: Size, widths: Size) -> bool:
    """Whether an interpreter would take seconds; the kernels' own tests have such sizes."""
    return subject.interpreted and (math.prod(size) > 40 or max(widths) > 16)


def formula(op: str, inputs: Sequence[Tensor | None], options: Options) -> Array:
    values = map(array, inputs)
    if op == "upsample_add":
        return oracle.upsample_add(*values, options.upsample, options.activation)
    return oracle.upsample_merge(*values, *options)


def plain(op: str, inputs: Iterable[Tensor | None], options: Options) -> Tensor:
    if op == "upsample_add":
        return oracle.plain_upsample_add(*inputs, options.upsample, options.activation)  # type: ignore[arg-type]
    return oracle.plain_upsample_merge(*inputs, *options)  # type: ignore[arg-type]


def tensors(inputs: Iterable[Tensor | None]) -> list[Tensor]:
    return [x for x in inputs if x is not None]


def filled(inputs: Sequence[Tensor | None], with_: Iterable[Tensor]) -> list[Tensor | None]:
    """``inputs`` with its tensors replaced, one after another."""
    those = iter(with_)
    return [None if x is None else next(those) for x in inputs]


# Values.


@each_dtype(*OPS)
@pytest.mark.parametrize("mask_first", [True, False])
@pytest.mark.parametrize("upsample", DECODER_UPSAMPLES)
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("size", "widths"), SHAPES)
def test_formula(
    subject: Subject,
    dtype: torch.dtype,
    mask_first: bool,
    upsample: str,
    padding_mode: str,
    activation: str,
    size: Size,
    widths: Size,
) -> None:
    if slow(subject, size, widths):
        return
    options = Options(mask_first, upsample, padding_mode, activation)
    inputs = arguments(subject.op, Random(dtype, device=subject.device), size, widths)
    out = subject(*inputs, **options.of(subject.op))
    assert_near(out, formula(subject.op, inputs, options), dtype, SLACK)


@each(*OPS)
def test_defaults(subject: Subject) -> None:
    inputs = arguments(subject.op, Random(torch.float32, device=subject.device), (1, 4, 5), (2, 3, 2))
    options = Options(activation="none" if subject.op == "upsample_add" else "relu")
    assert_near(subject(*inputs), formula(subject.op, inputs, options), torch.float32)
    if subject.op == "upsample_merge":
        inputs[3] = None
        assert_near(subject(*inputs[:3]), formula(subject.op, inputs, options), torch.float32)


@each_dtype(*OPS, dtypes=[torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", MIXED, ids=str)
@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("second", LAYOUTS)
@pytest.mark.parametrize("widths", [(4, 2, 3), (5, 0, 2), (24, 9, 25)])
def test_layouts(
    subject: Subject,
    dtype: torch.dtype,
    options: Options,
    first: Callable[[Tensor], Tensor],
    second: Callable[[Tensor], Tensor],
    widths: Size,
) -> None:
    size = (2, 5, 3)
    if slow(subject, size, widths):
        return
    inputs = arguments(subject.op, Random(dtype, device=subject.device), size, widths)
    large, *weights = inputs[1:]
    inputs = [first(inputs[0]), None if large is None else second(large)]
    # Weights too come in all layouts.
    inputs += [second(x) if x.ndim == 4 and second is not expanded else x for x in weights]
    before = [x.clone() for x in tensors(inputs)]
    out = subject(*inputs, **options.of(subject.op))
    assert_near(out, formula(subject.op, inputs, options), dtype, SLACK)
    # channels_last if all maps are, and only then.
    both = first is channels_last and (large is None or second is channels_last)
    assert out.is_contiguous(memory_format=torch.channels_last) == both
    assert out.is_contiguous() != both
    assert all(torch.equal(x, y) for x, y in zip(tensors(inputs), before, strict=True))  # inputs are not written


@each(*OPS)
@settings(deadline=None, max_examples=25)
@given(
    size=st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 19)),
    widths=st.tuples(st.integers(1, 19), st.integers(0, 19), st.integers(1, 40)),
    options=st.sampled_from(MIXED),
    layout=st.sampled_from(LAYOUTS[:3]),
)
def test_any_shape(
    subject: Subject, size: Size, widths: Size, options: Options, layout: Callable[[Tensor], Tensor]
) -> None:
    if subject.interpreted:
        size, widths = (min(size[0], 1), min(size[1], 3), min(size[2], 9)), (*widths[:2], min(widths[2], 9))
    mask, large, *rest = arguments(subject.op, Random(torch.float32, device=subject.device), size, widths)
    inputs = [layout(mask), None if large is None else layout(large), *rest]
    out = subject(*inputs, **options.of(subject.op))
    assert_near(out, formula(subject.op, inputs, options), torch.float32, SLACK)


@each("upsample_merge")
@pytest.mark.parametrize("upsample", DECODER_UPSAMPLES)
@pytest.mark.parametrize("widths", [(2048, 3, 2), (5, 2048, 26), (3, 0, 2048)])
def test_many_channels(subject: Subject, upsample: str, widths: Size) -> None:
    if subject.interpreted:
        return
    inputs = arguments(subject.op, Random(torch.float32, device=subject.device), (1, 2, 3), widths)
    expected = formula(subject.op, inputs, Options(upsample=upsample))
    assert_near(subject(*inputs, upsample=upsample), expected, torch.float32, SLACK)


@each(*OPS)
@pytest.mark.parametrize("size", [(2, 5, 7), (1, 1, 9), (1, 9, 1), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("options", MIXED[:3], ids=str)
@pytest.mark.parametrize("layout", HOSTILE)
def test_strides(subject: Subject, layout: Callable[[Tensor], Tensor], options: Options, size: Size) -> None:
    mask, large, *rest = arguments(subject.op, Random(torch.float32, device=subject.device), size, (3, 3, 3))
    if slow(subject, size, (3, 3, 3)):
        return
    inputs = [layout(mask), layout(large), *(HOSTILE[0](x) for x in rest)]
    expected = formula(subject.op, inputs, options)
    out = subject(*(x.requires_grad_() if x.is_leaf else x for x in inputs), **options.of(subject.op))
    assert_near(out.detach(), expected, torch.float32, SLACK)
    gradient = layout(Random(torch.float32, device=subject.device)(*out.shape))
    assert all(g.isfinite().all() for g in torch.autograd.grad(out, inputs, gradient))


# NaN and infinity.


@each(*OPS)
@VALUES
@pytest.mark.parametrize("options", MIXED, ids=str)
@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("cell", [(0, 0), (2, 3), (4, 5)])
@pytest.mark.parametrize("which", [0, 1])
def test_a_cell_that_is_not_finite(
    subject: Subject,
    value: float,
    options: Options,
    layout: Callable[[Tensor], Tensor],
    cell: tuple[int, int],
    which: int,
) -> None:
    # Positive values: an infinity keeps its sign, so that an activation makes 0 of -inf everywhere or nowhere.
    inputs = [
        x.abs() for x in arguments(subject.op, Random(torch.float32, device=subject.device), (1, 5, 6), (2, 2, 3))
    ]
    inputs[which][0, 1, cell[0], cell[1]] = value
    inputs[:2] = [layout(x) for x in inputs[:2]]
    out = array(subject(*inputs, **options.of(subject.op)))
    with np.errstate(invalid="ignore", over="ignore"):
        expected = formula(subject.op, inputs, options)
    if np.isfinite(expected).all():  # -inf that the activation stopped
        assert value == -math.inf
        assert np.isfinite(out).all()
    else:
        assert_non_finite_as(out, expected)


@each("upsample_merge")
@VALUES
@pytest.mark.parametrize("options", [o for o in MIXED if o.activation == "none"], ids=str)
@pytest.mark.parametrize("which", [0, 1])
def test_a_cell_of_wide_maps_that_is_not_finite(subject: Subject, value: float, options: Options, which: int) -> None:
    """Fast algorithms for many channels combine cells that the formula does not."""
    random = Random(torch.float32, device=subject.device)
    inputs = [x.abs() for x in arguments(subject.op, random, (1, 5, 6), (8, 9, 16))]
    inputs[which][0, 1, 2, 3] = value
    out = array(subject(*inputs, **options.of(subject.op)))
    with np.errstate(invalid="ignore", over="ignore"):
        assert_non_finite_as(out, formula(subject.op, inputs, options))


@each(*OPS)
@pytest.mark.parametrize("options", [o for o in MIXED if o.activation != "silu"], ids=str)
@pytest.mark.parametrize("widths", [(2, 3, 2), (8, 9, 16)])
@SPOILED
def test_gradients_that_are_not_finite(subject: Subject, options: Options, widths: Size, spoiled: str) -> None:
    given_ = arguments(subject.op, Random(torch.float32, device=subject.device), (2, 3, 4), widths)
    assert_gradients_finite_as(
        lambda *x: subject(*x, **options.of(subject.op)),
        lambda *x: plain(subject.op, x, options),
        [x.abs() for x in given_],
        spoiled,
    )


# Gradients.


@each_dtype(*OPS, dtypes=[torch.float64])
@pytest.mark.parametrize("options", MIXED, ids=str)
def test_finite_differences(subject: Subject, dtype: torch.dtype, options: Options) -> None:
    for size, widths in (((1, 2, 3), (2, 1, 2)), ((2, 1, 1), (1, 0, 2))):
        given_ = arguments(subject.op, Random(seed=1, device=subject.device), size, widths)

        def call(*inputs: Tensor, given_: list[Tensor | None] = given_) -> Any:
            return subject(*filled(given_, inputs), **options.of(subject.op))

        assert torch.autograd.gradcheck(call, leaves(tensors(given_)))


@each_dtype(*OPS)
@pytest.mark.parametrize("options", MIXED, ids=str)
@pytest.mark.parametrize("layout", [contiguous, channels_last, sliced])
@pytest.mark.parametrize(("size", "widths"), GRADIENT_SHAPES)
@pytest.mark.parametrize("sign", [1, -1])
def test_gradients(
    subject: Subject,
    dtype: torch.dtype,
    options: Options,
    layout: Callable[[Tensor], Tensor],
    size: Size,
    widths: Size,
    sign: int,
) -> None:
    if slow(subject, size, widths):
        return
    given_ = arguments(subject.op, Random(dtype, seed=2, device=subject.device), size, widths)
    if dtype.itemsize == 2:
        # On one side of the kink of an activation, on whose two sides rounding would give different gradients.
        given_ = [None if x is None else x.abs() for x in given_]
        given_[-2:] = [x * sign for x in given_[-2:]]
    maps = [x is not None and i < 2 for i, x in enumerate(given_)]
    inputs = leaves(layout(x) if is_map else x for x, is_map in zip(given_, maps, strict=True) if x is not None)
    exact = leaves(tensors(given_), torch.float64)
    found = differ(subject(*filled(given_, inputs), **options.of(subject.op)), inputs)
    expected = differ(plain(subject.op, filled(given_, exact), options), exact)
    for x, y in zip(found, expected, strict=True):
        assert_near(x, array(y), dtype, slack=2 * SLACK)
    passed = subject.op == "upsample_add" and options.activation == "none"  # the lateral's is the result's, as it came
    if min(size) > 1 and min(widths) > 1:
        for x in found[: 1 if passed else 2]:
            assert x.is_contiguous(
                memory_format=torch.channels_last if layout is channels_last else torch.contiguous_format
            )


@each("upsample_merge")
@pytest.mark.parametrize("options", MIXED[:3], ids=str)
@pytest.mark.parametrize("layout", [contiguous, channels_last])
def test_many_cells_and_channels(subject: Subject, options: Options, layout: Callable[[Tensor], Tensor]) -> None:
    """More than a kernel takes at once, of cells, of inputs and of results."""
    if subject.interpreted:
        return
    given_ = arguments(subject.op, Random(torch.float32, seed=2, device=subject.device), (2, 17, 15), (70, 66, 68))
    # Of 69,360 sums some would be so close to 0 that rounding decides whether ReLU stops their gradients.
    given_[3] = 300 * torch.tensor([1.0, -1.0], device=subject.device).repeat(34)
    inputs, exact = leaves([*map(layout, given_[:2]), *given_[2:]]), leaves(given_, torch.float64)
    out, expected = subject(*inputs, **options.of(subject.op)), plain(subject.op, exact, options)
    assert_near(out.detach(), array(expected), torch.float32, slack=2 * SLACK)
    for x, y in zip(differ(out, inputs), differ(expected, exact), strict=True):
        assert_near(x, array(y), torch.float32, slack=4 * SLACK)


@each(*OPS)
@pytest.mark.parametrize("options", MIXED, ids=str)
def test_only_what_needs_a_gradient_gets_one(subject: Subject, options: Options) -> None:
    given_ = arguments(subject.op, Random(torch.float32, device=subject.device), (1, 3, 4), (2, 3, 2))
    whole = leaves(given_)
    expected = differ(subject(*whole, **options.of(subject.op)), whole)
    choices = itertools.islice(itertools.product([False, True], repeat=len(given_)), 1, None)
    if subject.interpreted:
        choices = (needs for needs in choices if sum(needs) == 1)
    for needs in choices:
        inputs = [x.detach().requires_grad_(need) for x, need in zip(given_, needs, strict=True)]
        out = subject(*inputs, **options.of(subject.op))
        wanted = [x for x in inputs if x.requires_grad]
        for x, y in zip(differ(out, wanted), itertools.compress(expected, needs), strict=True):
            torch.testing.assert_close(x, y)


@each(*OPS)
@pytest.mark.parametrize("options", MIXED, ids=str)
def test_gradients_that_are_expanded_or_strided(subject: Subject, options: Options) -> None:
    """``sum()`` sends back one value for all cells; a slice sends a gradient with gaps."""
    for reduce in (lambda out: out.sum(), lambda out: out[:, :, ::2, 1:].mT.square().sum()):
        given_ = arguments(subject.op, Random(torch.float32, device=subject.device), (2, 3, 4), (2, 3, 2))
        inputs, exact = leaves(given_), leaves(given_, torch.float64)
        reduce(subject(*inputs, **options.of(subject.op))).backward()
        reduce(plain(subject.op, exact, options)).backward()
        for x, y in zip(inputs, exact, strict=True):
            assert_near(x.grad, array(y.grad), torch.float32, slack=2 * SLACK)


# What a backward keeps.


@each(*OPS)
@pytest.mark.parametrize("options", MIXED, ids=str)
def test_neither_the_upsampled_map_nor_the_concatenation_is_kept(subject: Subject, options: Options) -> None:
    inputs = leaves(arguments(subject.op, Random(torch.float32, device=subject.device), (1, 3, 4), (5, 3, 2)))
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = subject(*inputs, **options.of(subject.op))
    allowed = [*inputs, *([] if options.activation == "none" else [out])]
    addresses = {x.data_ptr() for x in allowed}
    others = [x for x in kept if x.data_ptr() not in addresses]
    # The value before a SiLU, of which the result does not tell.
    assert len(others) == (options.activation == "silu")
    assert all(x.shape == out.shape for x in others)


@each(*OPS)
def test_without_an_activation_the_result_may_be_overwritten(subject: Subject) -> None:
    inputs = leaves(arguments(subject.op, Random(torch.float32, device=subject.device), (1, 3, 4), (2, 3, 2)))
    expected = torch.autograd.grad(subject(*inputs, activation="none").sum(), inputs)
    out = subject(*inputs, activation="none")
    out.mul_(1).clamp_(-99, 99)
    for x, y in zip(torch.autograd.grad(out.sum(), inputs), expected, strict=True):
        torch.testing.assert_close(x, y)

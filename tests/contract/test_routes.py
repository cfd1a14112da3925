"""Every route of the refinement ops on the CPU computes what the op means, with the same bits for any threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from sharpmask_kernels.backends.cpu import routes

from . import test_decoder as decoder
from .inputs import MODES, Random, Size, arguments, array, assert_near, channels_last, contiguous, sliced
from .oracle import PLAIN
from .subjects import REFINEMENT, Subject, missing

pytestmark = [
    pytest.mark.usefixtures("poisoned"),
    pytest.mark.grid(whole=False),
    pytest.mark.skipif(missing("cpu") is not None, reason="backend cpu is missing"),
]

ROUTES = [{step: route} for step in ("merge", "skip", "input") for route in routes.STEPS[step]]
DECODER_ROUTES = [{step: route} for step in ("nearest", "mask") for route in routes.STEPS[step]]
DECODER_SIZES: list[tuple[Size, Size]] = [
    ((2, 5, 7), (24, 9, 17)),
    ((1, 1, 1), (1, 1, 1)),
    ((1, 7, 1), (13, 0, 33)),
    ((1, 1, 40), (70, 66, 68)),
    ((0, 4, 3), (2, 3, 8)),
]
SIZES: list[tuple[Size, Size]] = [
    ((2, 5, 7), (27, 40, 33)),
    ((1, 9, 20), (4, 3, 2)),
    ((3, 1, 2), (16, 80, 70)),
    ((0, 3, 4), (5, 30, 24)),
]


def found(op: str, inputs: list[Tensor], mode: tuple[str, str]) -> list[Tensor]:
    """Output and gradients."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = Subject(op, "cpu", "cpu")(*leaves, upsample=mode[0], padding_mode=mode[1])
    return [out.detach(), *torch.autograd.grad(out, leaves, weights_like(out))]


def expected(op: str, inputs: list[Tensor], mode: tuple[str, str]) -> list[Tensor]:
    leaves = [x.detach().double().requires_grad_() for x in inputs]
    out = PLAIN[op](*leaves, *mode)
    return [out.detach(), *torch.autograd.grad(out, leaves, weights_like(out))]


def weights_like(out: Tensor) -> Tensor:
    return torch.linspace(-1, 1, max(1, out.numel()), dtype=torch.float64)[: out.numel()].view(out.shape).to(out.dtype)


@pytest.mark.parametrize("op", REFINEMENT)
@pytest.mark.parametrize("taken", ROUTES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("layout", [contiguous, channels_last, sliced])
@pytest.mark.parametrize(("size", "widths"), SIZES)
def test_values(
    op: str,
    taken: dict[str, str],
    dtype: torch.dtype,
    mode: tuple[str, str],
    layout: Callable[[Tensor], Tensor],
    size: Size,
    widths: Size,
) -> None:
    given = arguments(op, Random(dtype, seed=7), size, widths)
    # Away from the kink of ReLU, on whose two sides rounding would give different gradients.
    inputs = [layout(x.abs()) if i < 2 else x.abs() for i, x in enumerate(given)]
    with routes.forced(**taken):
        outcome = found(op, inputs, mode)
    for i, (ours, theirs) in enumerate(zip(outcome, expected(op, inputs, mode), strict=True)):
        assert_near(ours, array(theirs), dtype, slack=20 if i else 1)  # a gradient of many cells, which cancel
    last = layout is channels_last and size[0] > 0  # without images, both
    assert outcome[0].is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@pytest.mark.parametrize("taken", DECODER_ROUTES, ids=str)
@pytest.mark.parametrize("options", decoder.MIXED, ids=str)
@pytest.mark.parametrize("layout", [contiguous, channels_last, sliced])
@pytest.mark.parametrize(("size", "widths"), DECODER_SIZES)
def test_values_of_upsample_merge(
    taken: dict[str, str],
    options: decoder.Options,
    layout: Callable[[Tensor], Tensor],
    size: Size,
    widths: Size,
) -> None:
    given = decoder.tensors(decoder.arguments("upsample_merge", Random(torch.float32, seed=7), size, widths))
    maps = len(given) - 2
    leaves = [x.detach().requires_grad_() for x in [*map(layout, given[:maps]), *given[maps:]]]
    doubles = [x.detach().double().requires_grad_() for x in given]
    with routes.forced(**taken):
        out = Subject("upsample_merge", "cpu", "cpu")(*without_skip(leaves), **options.of("upsample_merge"))
        gradients = torch.autograd.grad(out, leaves, weights_like(out))
    plain = decoder.plain("upsample_merge", without_skip(doubles), options)
    wanted = torch.autograd.grad(plain, doubles, weights_like(plain))
    for ours, theirs in zip([out, *gradients], [plain, *wanted], strict=True):
        assert_near(ours, array(theirs), torch.float32, slack=20)


def without_skip(given: list[Tensor]) -> list[Tensor | None]:
    """The arguments of ``upsample_merge``: None for a skip that is not among them."""
    return [*given] if len(given) == 4 else [given[0], None, *given[1:]]


@decoder.VALUES
@pytest.mark.parametrize("options", [o for o in decoder.MIXED if o.activation == "none"], ids=str)
@pytest.mark.parametrize("which", [0, 1])
def test_a_cell_that_is_not_finite_spreads_as_in_the_formula(
    value: float, options: decoder.Options, which: int
) -> None:
    with routes.forced(nearest="tiles"):
        decoder.test_a_cell_of_wide_maps_that_is_not_finite(
            Subject("upsample_merge", "cpu", "cpu"), value, options, which
        )


@decoder.SPOILED
@pytest.mark.parametrize("options", [o for o in decoder.MIXED if o.activation != "silu"], ids=str)
def test_gradients_that_are_not_finite(spoiled: str, options: decoder.Options) -> None:
    with routes.forced(nearest="tiles", mask="tiles"):
        decoder.test_gradients_that_are_not_finite(
            Subject("upsample_merge", "cpu", "cpu"), options, (8, 9, 16), spoiled
        )


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("taken", ROUTES, ids=str)
@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.usefixtures("threads")
def test_the_same_bits_for_any_number_of_threads(taken: dict[str, str], layout: Callable[[Tensor], Tensor]) -> None:
    given = arguments("refine", Random(torch.float32, seed=5), (3, 21, 33), (40, 32, 48), feature_channels=64)
    inputs = [layout(x) if i < 2 else x for i, x in enumerate(given)]
    with routes.forced(**taken):
        first = found("refine", inputs, ("bilinear", "zeros"))
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            again = found("refine", inputs, ("bilinear", "zeros"))
            assert all(torch.equal(x, y) for x, y in zip(again, first, strict=True))


@pytest.mark.parametrize("route", routes.STEPS["merge"])
def test_nan_reaches_what_reads_it_and_no_other(route: str) -> None:
    skip, mask, weight, bias = arguments("merge_upsample", Random(torch.float32), (1, 7, 9), (24, 24, 24))
    mask[0, 3, 2, 4] = float("nan")
    with routes.forced(merge=route):
        out = Subject("merge_upsample", "cpu", "cpu")(skip, mask, weight, bias, upsample="nearest")
    where = torch.zeros(7, 9, dtype=torch.bool)
    where[1:4, 3:6] = True
    assert torch.equal(out.isnan()[0, 0], where.repeat_interleave(2, 0).repeat_interleave(2, 1))


@pytest.mark.parametrize("route", routes.STEPS["merge"])
def test_an_infinity_that_relu_stops_leaves_nothing(route: str) -> None:
    inputs = [x.abs() for x in arguments("merge_upsample", Random(torch.float32), (1, 7, 9), (24, 24, 24))]
    inputs[1][0, 3, 2, 4] = -float("inf")
    with routes.forced(merge=route):
        assert Subject("merge_upsample", "cpu", "cpu")(*inputs).isfinite().all()

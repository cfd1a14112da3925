"""Every op against float64 numpy written from its formula, on all kinds of inputs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import sharpmask_kernels as kernels
from sharpmask_kernels import Windows

Array = npt.NDArray[np.float64]

UPSAMPLES = ("bilinear", "nearest")
PADDING_MODES = ("zeros", "replicate")
MODES = list(itertools.product(UPSAMPLES, PADDING_MODES))

# Largest error allowed, as a share of the largest value of the result. The oracle sees the inputs after their
# rounding to the dtype, sums are accumulated in fp32 at least, so what is left is:
TOLERANCE = {
    torch.float64: 1e-13,  # a sum of at most 9 * 13 products, each rounded to 2^-53
    torch.float32: 4e-6,  # the same with 2^-24
    torch.float16: 2e-3,  # up to four intermediate maps (skip, merge, sum, result), each rounded to 2^-11
    torch.bfloat16: 16e-3,  # the same with 2^-8
}
DTYPES = list(TOLERANCE)

# (batch, height, width), (skip, mask, out channels)
SHAPES = [
    ((2, 5, 7), (7, 5, 3)),
    ((1, 1, 1), (1, 1, 1)),
    ((2, 1, 1), (3, 2, 5)),
    ((1, 1, 6), (2, 3, 1)),
    ((3, 7, 1), (13, 1, 2)),
    ((0, 4, 3), (2, 3, 5)),
]


# The formulas.


def conv(x: Array, weight: Array, bias: Array | None, padding_mode: str) -> Array:
    height, width = x.shape[2:]
    border = ((0, 0), (0, 0), (1, 1), (1, 1))
    padded = np.pad(x, border, mode="constant" if padding_mode == "zeros" else "edge")
    out = np.zeros((len(x), len(weight), height, width))
    if bias is not None:
        out += bias[:, None, None]
    for dy, dx in itertools.product(range(3), range(3)):
        tap = padded[:, :, dy : dy + height, dx : dx + width]
        out += np.einsum("oi,bihw->bohw", weight[:, :, dy, dx], tap)
    return out


def up2(x: Array, upsample: str) -> Array:
    return _up2_rows(_up2_rows(x, upsample).swapaxes(2, 3), upsample).swapaxes(2, 3)


def _up2_rows(x: Array, upsample: str) -> Array:
    """Row 2i lies a quarter of a cell above the centre of row i, row 2i + 1 a quarter below."""
    length = x.shape[2]
    out = np.empty((*x.shape[:2], 2 * length, x.shape[3]))
    for i in range(length):
        above, here, below = x[:, :, max(i - 1, 0)], x[:, :, i], x[:, :, min(i + 1, length - 1)]
        near = upsample == "nearest"
        out[:, :, 2 * i] = here if near else 0.25 * above + 0.75 * here
        out[:, :, 2 * i + 1] = here if near else 0.75 * here + 0.25 * below
    return out


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def merge_formula(skip: Array, mask: Array, weight: Array, bias: Array | None, up: str, pad: str) -> Array:
    return up2(relu(conv(np.concatenate([skip, mask], axis=1), weight, bias, pad)), up)


def add_formula(horizontal: Array, mask: Array, weight: Array, bias: Array | None, up: str, pad: str) -> Array:
    return up2(relu(horizontal + conv(mask, weight, bias, pad)), up)


def refine_formula(
    feature: Array, mask: Array, sw: Array, sb: Array | None, mw: Array, mb: Array | None, up: str, pad: str
) -> Array:
    return merge_formula(relu(conv(feature, sw, sb, pad)), mask, mw, mb, up, pad)


def gather_formula(maps: Sequence[Array], windows: Windows, size: int, step: int) -> Array:
    out = np.zeros((len(windows.score), maps[0].shape[1], size, size))
    for n, (image, scale, row, col) in enumerate(zip(*(f.tolist() for f in windows[1:]), strict=True)):
        source = maps[scale][image]
        for y, x in itertools.product(range(size), range(size)):
            r, c = row * step + y, col * step + x
            if 0 <= r < source.shape[1] and 0 <= c < source.shape[2]:
                out[n, :, y, x] = source[:, r, c]
    return out


# Inputs.


def double(x: Tensor | None) -> Any:
    return None if x is None else x.detach().double().numpy()


def contiguous(x: Tensor) -> Tensor:
    return x.contiguous()


def channels_last(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last)


def sliced(x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    whole = torch.full((batch + 1, channels + 2, 2 * height + 3, width + 4), math.nan, dtype=x.dtype)
    part = whole[1:, 1:-1, 1 : 1 + 2 * height : 2, 3 : 3 + width]
    return part.copy_(x)


def expanded(x: Tensor) -> Tensor:
    return x[:1, :, :, :1].expand(x.shape)


LAYOUTS = [contiguous, channels_last, sliced, expanded]


class Random:
    """Tensors of one dtype from one seed."""

    def __init__(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> None:
        self.dtype, self.generator = dtype, torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=self.generator).to(self.dtype)


def merge_arguments(random: Random, size: tuple[int, int, int], widths: tuple[int, int, int]) -> list[Any]:
    (batch, height, width), (ks, km, ko) = size, widths
    return [random(batch, ks, height, width), random(batch, km, height, width), random(ko, ks + km, 3, 3), random(ko)]


def add_arguments(random: Random, size: tuple[int, int, int], widths: tuple[int, int, int]) -> list[Any]:
    (batch, height, width), (_, km, ko) = size, widths
    return [random(batch, ko, height, width), random(batch, km, height, width), random(ko, km, 3, 3), random(ko)]


def refine_arguments(random: Random, size: tuple[int, int, int], widths: tuple[int, int, int]) -> list[Any]:
    (batch, height, width), (ks, km, ko) = size, widths
    kf = 11
    maps = [random(batch, kf, height, width), random(batch, km, height, width)]
    return [*maps, random(ks, kf, 3, 3), random(ks), random(ko, ks + km, 3, 3), random(ko)]


OPS: list[tuple[Callable[..., Tensor], Callable[..., Array], Callable[..., list[Any]]]] = [
    (kernels.merge_upsample, merge_formula, merge_arguments),
    (kernels.add_upsample, add_formula, add_arguments),
    (kernels.refine, refine_formula, refine_arguments),
]
op_cases = pytest.mark.parametrize(
    ("op", "formula", "arguments"), OPS, ids=["merge_upsample", "add_upsample", "refine"]
)


def assert_near(out: Tensor, expected: Array, dtype: torch.dtype, slack: float = 1) -> None:
    assert tuple(out.shape) == expected.shape
    assert out.dtype == dtype
    if expected.size:
        limit = slack * TOLERANCE[dtype] * max(1, np.abs(expected).max())
        np.testing.assert_allclose(double(out), expected, rtol=0, atol=limit)


def windows_at(*cells: tuple[int, int, int, int]) -> Windows:
    """Windows at (image, scale, row, col)."""
    columns = torch.tensor(cells, dtype=torch.int64).reshape(-1, 4).T
    return Windows(torch.zeros(len(cells)), *columns)


# merge_upsample, add_upsample, refine.


@op_cases
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("upsample", "padding_mode"), MODES)
@pytest.mark.parametrize(("size", "widths"), SHAPES)
def test_formula(
    op: Callable[..., Tensor],
    formula: Callable[..., Array],
    arguments: Callable[..., list[Any]],
    dtype: torch.dtype,
    upsample: str,
    padding_mode: str,
    size: tuple[int, int, int],
    widths: tuple[int, int, int],
) -> None:
    given_ = arguments(Random(dtype), size, widths)
    out = op(*given_, upsample=upsample, padding_mode=padding_mode)
    expected = formula(*map(double, given_), upsample, padding_mode)
    assert expected.shape == (size[0], widths[2], 2 * size[1], 2 * size[2])
    assert_near(out, expected, dtype)


@op_cases
def test_defaults_are_the_papers_upsampling_and_plain_convolution(
    op: Callable[..., Tensor], formula: Callable[..., Array], arguments: Callable[..., list[Any]]
) -> None:
    given_ = arguments(Random(), (1, 4, 5), (2, 3, 2))
    assert_near(op(*given_), formula(*map(double, given_), "bilinear", "zeros"), torch.float64)


@op_cases
@pytest.mark.parametrize("upsample", UPSAMPLES)
def test_no_bias(
    op: Callable[..., Tensor],
    formula: Callable[..., Array],
    arguments: Callable[..., list[Any]],
    upsample: str,
) -> None:
    given_ = arguments(Random(), (2, 3, 4), (2, 3, 2))
    given_ = [None if x.ndim == 1 else x for x in given_]
    out = op(*given_, upsample=upsample)
    assert_near(out, formula(*map(double, given_), upsample, "zeros"), torch.float64)


@op_cases
@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("second", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layouts(
    op: Callable[..., Tensor],
    formula: Callable[..., Array],
    arguments: Callable[..., list[Any]],
    first: Callable[[Tensor], Tensor],
    second: Callable[[Tensor], Tensor],
    dtype: torch.dtype,
) -> None:
    a, b, *rest = arguments(Random(dtype), (2, 5, 3), (4, 2, 3))
    # Weights too come in all layouts.
    given_ = [first(a), second(b), *(second(x) if x.ndim == 4 and second is not expanded else x for x in rest)]
    before = [x.clone() for x in given_]
    for upsample, padding_mode in MODES:
        out = op(*given_, upsample=upsample, padding_mode=padding_mode)
        assert_near(out, formula(*map(double, given_), upsample, padding_mode), dtype)
        # channels_last if both maps are, and only then.
        both = first is channels_last and second is channels_last
        assert out.is_contiguous(memory_format=torch.channels_last) == both
        assert out.is_contiguous() != both
    assert all(torch.equal(x, y) for x, y in zip(given_, before, strict=True))  # inputs are not written


@op_cases
def test_contiguous_maps_that_are_also_channels_last_give_contiguous_ones(
    op: Callable[..., Tensor], formula: Callable[..., Array], arguments: Callable[..., list[Any]]
) -> None:
    # One channel, or one cell: such maps are both.
    for size, widths in (((2, 1, 1), (3, 2, 4)), ((2, 3, 4), (1, 1, 4))):
        a, b, *rest = arguments(Random(), size, widths)
        assert op(a, channels_last(b), *rest).is_contiguous()


@op_cases
@pytest.mark.parametrize(("upsample", "padding_mode"), MODES)
def test_gradients(
    op: Callable[..., Tensor],
    formula: Callable[..., Array],
    arguments: Callable[..., list[Any]],
    upsample: str,
    padding_mode: str,
) -> None:
    def call(*given_: Tensor) -> Tensor:
        return op(*given_, upsample=upsample, padding_mode=padding_mode)

    for size in ((1, 2, 3), (2, 1, 1)):
        given_ = [x.requires_grad_() for x in arguments(Random(seed=1), size, (2, 1, 2))]
        assert torch.autograd.gradcheck(call, given_)


@op_cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_gradients_of_low_precision(
    op: Callable[..., Tensor],
    formula: Callable[..., Array],
    arguments: Callable[..., list[Any]],
    dtype: torch.dtype,
) -> None:
    low = [x.requires_grad_() for x in arguments(Random(dtype), (2, 4, 5), (3, 2, 4))]
    high = [x.detach().double().requires_grad_() for x in low]
    # Away from the kink of ReLU, on whose two sides rounding would give different gradients.
    for values in (low, high):
        with torch.no_grad():
            for x in values:
                x.abs_()
        op(*values).sum().backward()
    for x, y in zip(low, high, strict=True):
        assert x.grad is not None and y.grad is not None
        # The backward pass rounds as many maps again.
        assert_near(x.grad, double(y.grad), dtype, slack=2)


def test_only_what_needs_a_gradient_gets_one() -> None:
    skip, mask, weight, bias = merge_arguments(Random(), (1, 3, 3), (2, 2, 2))
    mask.requires_grad_()
    kernels.merge_upsample(skip, mask, weight, bias).sum().backward()
    assert mask.grad is not None
    assert skip.grad is None and weight.grad is None and bias.grad is None


def test_concatenation_is_a_sum_of_two_halves() -> None:
    skip, mask, weight, bias = merge_arguments(Random(), (2, 5, 4), (3, 2, 4))
    horizontal = torch.from_numpy(conv(double(skip), double(weight[:, :3]), double(bias), "replicate"))
    whole = kernels.merge_upsample(skip, mask, weight, bias, padding_mode="replicate")
    split = kernels.add_upsample(horizontal, mask, weight[:, 3:], None, padding_mode="replicate")
    torch.testing.assert_close(split, whole, rtol=1e-12, atol=1e-12)


# topk_windows.


def ranking(scores: Sequence[Tensor], n: int) -> list[tuple[float, int, int, int, int]]:
    """(score, image, scale, row, col), image after image, best first, equal ones in reading order."""
    rows = []
    for image in range(scores[0].shape[0]):
        cells = []
        for scale, grid in enumerate(scores):
            for row, col in itertools.product(range(grid.shape[2]), range(grid.shape[3])):
                value = grid[image, 0, row, col].item()
                cells.append((-math.inf if math.isnan(value) else value, image, scale, row, col))
        rows += sorted(cells, key=lambda cell: -cell[0])[:n]  # sorted() is stable
    return rows


def as_rows(windows: Windows) -> list[tuple[float, int, int, int, int]]:
    return list(zip(*(field.tolist() for field in windows), strict=True))


VALUES = st.sampled_from([math.nan, -math.inf, math.inf, -1.0, -0.0, 0.0, 0.5, 2.0])


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_topk_order(data: st.DataObject) -> None:
    batch = data.draw(st.integers(0, 3))
    sides = st.tuples(st.integers(1, 4), st.integers(1, 4))
    grids = data.draw(st.lists(sides, min_size=1, max_size=3))
    dtype = data.draw(st.sampled_from(DTYPES))
    scores = [
        torch.tensor(data.draw(st.lists(VALUES, min_size=batch * h * w, max_size=batch * h * w)), dtype=dtype).reshape(
            batch, 1, h, w
        )
        for h, w in grids
    ]
    cells = sum(h * w for h, w in grids)
    n = data.draw(st.integers(0, cells + 2))
    windows = kernels.topk_windows(scores, n)
    assert len(windows.score) == batch * min(n, cells)
    assert as_rows(windows) == ranking(scores, n)
    assert windows.score.dtype == torch.float32
    assert all(field.dtype == torch.int64 for field in windows[1:])


def test_topk_of_many_cells_of_unequal_scales() -> None:
    random = Random(torch.float32)
    scores = [random(2, 1, 9, 13), random(2, 1, 31, 17).to(memory_format=torch.channels_last), random(2, 1, 1, 1)]
    scores[0].requires_grad_()
    windows = kernels.topk_windows(scores, 200)
    assert as_rows(windows) == ranking(scores, 200)
    assert not windows.score.requires_grad


def test_topk_rows_of_nan_come_last_with_score_minus_infinity() -> None:
    scores = torch.tensor([math.nan, 1.0, -5.0, math.nan]).reshape(1, 1, 2, 2)
    windows = kernels.topk_windows([scores], 4)
    assert windows.score.tolist() == [1, -5, -math.inf, -math.inf]
    assert list(zip(windows.row.tolist(), windows.col.tolist(), strict=True)) == [(0, 1), (1, 0), (0, 0), (1, 1)]


def test_select_takes_the_same_rows_of_every_field() -> None:
    windows = kernels.topk_windows([Random(torch.float32)(1, 1, 3, 3)], 9)
    rows = as_rows(windows)
    assert as_rows(windows.select(slice(2, 5))) == rows[2:5]
    assert as_rows(windows.select(windows.row == 1)) == [row for row in rows if row[3] == 1]
    assert as_rows(windows.select(torch.tensor([8, 0]))) == [rows[8], rows[0]]


# gather_windows.

SCATTERED = windows_at(
    (0, 0, 0, 0), (1, 0, 1, 2), (1, 1, -2, 1), (0, 1, 2, -1), (0, 0, 4, 6), (1, 1, 10**9, 0), (0, 1, 0, -(10**9))
)  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("size", "step"), [(1, 1), (3, 1), (4, 2), (9, 8), (2, 5)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gather(dtype: torch.dtype, size: int, step: int, layout: Callable[[Tensor], Tensor]) -> None:
    random = Random(dtype)
    maps = [layout(random(2, 3, 5, 7)), layout(random(2, 3, 11, 4))]
    out = kernels.gather_windows(maps, SCATTERED, size, step=step)
    assert np.array_equal(double(out), gather_formula([double(m) for m in maps], SCATTERED, size, step))  # no rounding
    assert out.dtype == dtype
    if size > 1:
        assert out.is_contiguous(memory_format=torch.channels_last) == (layout is channels_last)


def test_gather_out_of_the_map_is_zero() -> None:
    ones = torch.ones(1, 2, 3, 3)
    windows = windows_at((0, 0, -1, 0), (0, 0, 0, -1), (0, 0, 2, 2), (0, 0, -2, 0), (0, 0, 3, 0))
    inside = [[[0, 0], [1, 1]], [[0, 1], [0, 1]], [[1, 0], [0, 0]], [[0, 0], [0, 0]], [[0, 0], [0, 0]]]
    out = kernels.gather_windows(ones, windows, 2)
    assert out[:, 0].tolist() == inside
    assert torch.equal(out[:, 0], out[:, 1])


def test_gather_keeps_non_finite_values_in_their_windows() -> None:
    maps = torch.zeros(1, 1, 3, 3)
    maps[0, 0, 0, 0] = math.nan
    out = kernels.gather_windows(maps, windows_at((0, 0, 0, 0), (0, 0, 1, 1), (0, 0, -3, 0)), 2)
    assert out.isnan().flatten(1).any(1).tolist() == [True, False, False]


@pytest.mark.parametrize("batch", [0, 2])
def test_gather_nothing(batch: int) -> None:
    assert kernels.gather_windows(torch.ones(batch, 3, 4, 4), windows_at(), 2).shape == (0, 3, 2, 2)


def test_gather_takes_one_tensor_for_a_list_of_one() -> None:
    maps, windows = Random()(1, 2, 4, 4), windows_at((0, 0, 1, 1))
    assert torch.equal(kernels.gather_windows(maps, windows, 2), kernels.gather_windows([maps], windows, 2))


@pytest.mark.parametrize("step", [1, 2])
def test_gather_gradients(step: int) -> None:
    maps = [Random()(2, 2, 3, 4).requires_grad_(), channels_last(Random()(2, 2, 5, 2)).requires_grad_()]
    windows = windows_at((0, 0, 0, 0), (0, 0, 1, 1), (1, 1, -1, 0), (0, 1, 2, 1), (0, 0, 1, 1))

    def call(*maps: Tensor) -> Tensor:
        return kernels.gather_windows(maps, windows, 3, step=step)

    assert torch.autograd.gradcheck(call, maps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gradients_of_overlapping_windows_are_summed_in_fp32(dtype: torch.dtype) -> None:
    # A sum of ones in bf16 would stop at 256, in fp16 at 2048.
    maps = torch.zeros(1, 1, 1, 1, dtype=dtype, requires_grad=True)
    kernels.gather_windows(maps, windows_at(*[(0, 0, 0, 0)] * 4096), 1).sum().backward()
    assert maps.grad is not None and maps.grad.item() == 4096


# refine_windows.


class Cascade:
    """Random arguments of refine_windows, and its result by the formulas, one window at a time."""

    def __init__(
        self,
        dtype: torch.dtype,
        *,
        count: int = 7,
        size: int = 3,
        widths: Sequence[int] = (3, 5, 2),
        convs: int = 1,
        biases: bool = True,
    ) -> None:
        random = Random(dtype, seed=count)
        grids = [(2, 3), (4, 2)]
        self.windows = kernels.topk_windows([torch.rand(2, 1, *g) for g in grids], 0)  # the right dtypes
        scale = torch.arange(count) % 2
        # Rows and columns that leave the maps on all sides.
        row, col = (torch.arange(count) * 7) % 5 - 1, (torch.arange(count) * 3) % 4 - 1
        self.windows = Windows(torch.zeros(count), torch.arange(count) // 2 % 2, scale, row, col)
        self.encoding = random(count, widths[0], size, size)
        self.horizontals = [
            [random(2, k, (g[0] + size) << j, (g[1] + size) << j) for j, k in enumerate(widths[1:])] for g in grids
        ]
        self.stages: list[list[tuple[Tensor, Tensor | None]]] = []
        for before, after in itertools.pairwise(widths):
            ins = [before] * convs
            outs = [*ins[1:], after]
            self.stages.append(
                [(random(o, i, 3, 3) / 3, random(o) if biases else None) for i, o in zip(ins, outs, strict=True)]
            )
        self.head = (random(1, widths[-1], 3, 3), random(1) if biases else None)

    def __call__(self, **options: Any) -> Tensor:
        return kernels.refine_windows(self.encoding, self.horizontals, self.windows, self.stages, self.head, **options)

    def formula(self, upsample: str, padding_mode: str) -> Array:
        size = self.encoding.shape[-1]
        logits = []
        for n in range(len(self.encoding)):
            window = self.windows.select(slice(n, n + 1))
            x = double(self.encoding[n : n + 1])
            for j, convs in enumerate(self.stages):
                maps = [double(levels[j]) for levels in self.horizontals]
                horizontal = gather_formula(maps, window, size << j, 1 << j)
                for weight, bias in convs[:-1]:
                    x = relu(conv(x, double(weight), double(bias), padding_mode))
                weight, bias = convs[-1]
                x = add_formula(horizontal, x, double(weight), double(bias), upsample, padding_mode)
            logits.append(conv(x, double(self.head[0]), double(self.head[1]), padding_mode)[0, 0])
        return np.stack(logits)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("upsample", "padding_mode"), MODES)
@pytest.mark.parametrize("convs", [1, 2])
def test_refine_windows(dtype: torch.dtype, upsample: str, padding_mode: str, convs: int) -> None:
    cascade = Cascade(dtype, convs=convs)
    out = cascade(upsample=upsample, padding_mode=padding_mode)
    expected = cascade.formula(upsample, padding_mode)
    assert out.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # Rounding happens again at each of up to five convolutions.
    limit = 2 * TOLERANCE[dtype] * np.abs(expected).max()
    np.testing.assert_allclose(double(out), expected, rtol=0, atol=limit)


@pytest.mark.parametrize("count", [0, 1, 64, 65, 130])
def test_refine_any_number_of_windows(count: int) -> None:
    cascade = Cascade(torch.float64, count=count, size=1, widths=(2, 3), biases=False)
    out = cascade()
    assert out.shape == (count, 2, 2)
    if count:
        np.testing.assert_allclose(double(out), cascade.formula("bilinear", "zeros"), atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8])
@pytest.mark.parametrize(("size", "stages"), [(3, 1), (4, 1), (3, 2), (5, 2)])
def test_threshold_gives_packed_bits(dtype: torch.dtype, threshold: float, size: int, stages: int) -> None:
    cascade = Cascade(dtype, size=size, widths=(2, 3, 2)[: stages + 1])
    side = size << stages
    deviation, mean = torch.std_mean(cascade().to(dtype))
    weight, bias = cascade.head
    assert bias is not None
    # A mean logit at the threshold, so that it splits the pixels.
    cascade.head = (weight / deviation, (bias - mean) / deviation + math.log(threshold / (1 - threshold)))
    logits, packed = cascade(), cascade(threshold=threshold)
    assert packed.dtype == torch.uint8
    assert packed.shape == (7, side, math.ceil(side / 8))
    bits = np.unpackbits(packed.numpy(), axis=-1, bitorder="little")
    expected = double(logits) > math.log(threshold / (1 - threshold))
    assert np.array_equal(bits[..., :side], expected)
    assert not bits[..., side:].any()
    assert 0 < expected.mean() < 1


def test_threshold_is_not_rounded_to_the_dtype_of_the_maps() -> None:
    # log(.2 / .8) = -1.3863; the nearest bf16 is -1.3828, which is above it.
    weight = torch.zeros(1, 1, 3, 3, dtype=torch.bfloat16)
    bias = torch.tensor([-1.3828125], dtype=torch.bfloat16)
    zeros = torch.zeros(1, 1, 4, 4, dtype=torch.bfloat16)
    packed = kernels.refine_windows(
        zeros, [[zeros]], windows_at((0, 0, 0, 0)), [[(weight, None)]], (weight, bias), threshold=0.2
    )
    assert (packed == 255).all()


@pytest.mark.parametrize("threshold", [None, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_out_is_written_and_returned(threshold: float | None, dtype: torch.dtype) -> None:
    cascade = Cascade(dtype)
    expected = cascade(threshold=threshold)
    for out in (torch.full_like(expected, 77), torch.full((7, 12, 24), 77, dtype=expected.dtype)[..., ::2]):
        out = out[..., : expected.shape[-1]]
        assert cascade(threshold=threshold, out=out) is out
        assert torch.equal(out, expected)


def test_refine_windows_has_no_gradient() -> None:
    cascade = Cascade(torch.float32)
    cascade.encoding.requires_grad_()
    with pytest.raises(NotImplementedError, match="refine_windows is for inference only"):
        cascade().sum().backward()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_refine_windows_of_any_layout(layout: Callable[[Tensor], Tensor]) -> None:
    cascade = Cascade(torch.float64)
    cascade.encoding = layout(cascade.encoding)
    cascade.horizontals = [[layout(m) for m in levels] for levels in cascade.horizontals]
    np.testing.assert_allclose(double(cascade()), cascade.formula("bilinear", "zeros"), atol=1e-12)


# Backends.


def test_the_reference_by_name_is_the_default() -> None:
    given_ = merge_arguments(Random(), (1, 3, 3), (2, 2, 2))
    assert torch.equal(kernels.merge_upsample(*given_, backend="reference"), kernels.merge_upsample(*given_))


def test_the_same_bits_again() -> None:
    cascade = Cascade(torch.float32)
    assert torch.equal(cascade(), cascade())
    grads = []
    for _ in range(2):
        maps = Random(torch.float32)(2, 3, 6, 6).requires_grad_()
        gathered = kernels.gather_windows(maps, windows_at(*[(1, 0, 1, 1)] * 50), 4)
        (gathered * Random(torch.float32)(*gathered.shape)).sum().backward()
        assert maps.grad is not None
        grads.append(maps.grad)
    assert torch.equal(*grads)

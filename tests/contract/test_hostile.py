"""Arguments that are valid, or refused, and lie at the edge of what memory and integers hold."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sharpmask_kernels as kernels

from .inputs import FAR, SCATTERED, Random, TopDownPass, arguments, array, assert_near, windows_at
from .oracle import FORMULAS, gather_windows
from .subjects import REFINEMENT, Subject, each

pytestmark = pytest.mark.grid

# Windows.

EXTREMES = [-(2**63), -(2**62), -(2**40) - 1, -(2**31), 2**31, 2**40 + 1, 2**62, 2**63 - 1]
OUTSIDE = [(0, 0, a, b) for a in EXTREMES for b in (0, *EXTREMES[::7])] + [(0, 0, 0, a) for a in EXTREMES]


@each("gather_windows")
@pytest.mark.parametrize("step", [1, 3, 2**40, 2**62, 2**63 - 1])
def test_gathering_far_outside_and_at_any_step(subject: Subject, step: int) -> None:
    maps = [Random(torch.float32, device=subject.device)(2, 3, 5, 7).requires_grad_()]
    windows = windows_at(*OUTSIDE, (1, 0, 0, 0), device=subject.device)
    out = subject(maps, windows, 4, step=step)
    expected = gather_windows([array(maps[0].detach())], windows, 4, step)
    assert np.array_equal(array(out.detach()), expected)
    (gradient,) = torch.autograd.grad(out.sum(), maps)
    assert gradient.sum() == 3 * 4 * 4  # of the last window alone


@each("refine_windows")
def test_refining_far_outside(subject: Subject) -> None:
    cells = [*OUTSIDE[:: 4 if subject.interpreted else 1], *SCATTERED]
    top_down = TopDownPass(torch.float32, device=subject.device, count=len(cells))
    top_down.windows = windows_at(*cells, device=subject.device)
    expected = top_down.formula("bilinear", "replicate")
    out = top_down(padding_mode="replicate", backend=subject.backend)
    np.testing.assert_allclose(array(out), expected, rtol=0, atol=8e-6 * np.abs(expected).max())


@each("refine_windows")
def test_refining_at_an_image_or_scale_that_there_is_not(subject: Subject) -> None:
    """On a GPU nobody looks at the windows' values; the op itself must not read out of bounds."""
    top_down = TopDownPass(torch.float32, device=subject.device)
    weights, biases = zip(*(conv for stage in [*top_down.stages, [top_down.head]] for conv in stage), strict=True)
    maps = [m for levels in top_down.horizontals for m in levels]
    options = (list(weights), list(biases), [1, 1], "bilinear", "zeros", None, subject.backend)

    def refined(cells: list[tuple[int, int, int, int]]) -> Tensor:
        _, *fields = windows_at(*cells, device=subject.device)
        found: Tensor = torch.ops.sharpmask.refine_windows(top_down.encoding, maps, *fields, *options)
        return found

    unknown = [
        (2, 0, 0, 0),
        (-1, 0, 0, 0),
        (0, 2, 0, 0),
        (0, -1, 0, 0),
        (FAR, 1, 0, 0),
        (1, FAR, 0, 0),
        (-FAR, 0, 0, 0),
    ]
    assert torch.equal(refined(unknown), refined([(0, 0, FAR, 0)] * len(unknown)))


@each("encode_windows")
def test_encoding_far_outside(subject: Subject) -> None:
    windows = windows_at(*OUTSIDE, device=subject.device)
    encoded = subject(torch.ones(len(OUTSIDE), 16, 16, device=subject.device), windows, (20, 30), [1.0])
    nothing = subject(-torch.ones(1, 16, 16, device=subject.device), windows_at(OUTSIDE[0]), (20, 30), [1.0])
    assert encoded == nothing * len(OUTSIDE)


# Sizes.


@each("encode_windows")
def test_encoding_into_the_largest_image(subject: Subject) -> None:
    """2^32 - 1 pixels: more do not fit into COCO's 32-bit counts."""
    logits, windows = torch.ones(1, 16, 16, device=subject.device), windows_at((0, 0, 1, 1), device=subject.device)
    size = (2**16 + 1, 2**16 - 1)
    (rle,) = subject(logits, windows, size, [1.0])
    # Columns 8 to 23, rows 8 to 23: 8 columns and 8 cells of background come first.
    small = subject(logits, windows, (40, 40), [1.0])[0]
    assert rle["size"] == list(size)
    assert rle["counts"] != small["counts"]
    assert runs(rle["counts"])[:3] == [8 * size[0] + 8, 16, size[0] - 16]
    assert sum(runs(rle["counts"])) == math.prod(size)
    for height, width in ((2**16, 2**16), (2**32, 1), (2**40, 2**40), (2**63 - 1, 2**63 - 1), (2**80, 1)):
        with pytest.raises(ValueError, match=r"image_size must be of fewer than 2\^32 pixels, got "):
            subject(logits, windows, (height, width), [1.0])


def runs(counts: bytes) -> list[int]:
    """The run lengths that COCO's characters stand for."""
    found: list[int] = []
    value = shift = 0
    for character in counts:
        group = character - 48
        value |= (group & 31) << shift
        shift += 5
        if not group & 32:
            value -= (group & 16) << (shift - 4)
            found.append(value + (found[-2] if len(found) > 2 else 0))
            value = shift = 0
    return found


@each("encode_windows")
@pytest.mark.parametrize("scale", [1e-300, 1e-9, 1e9, 1e300])
def test_encoding_at_extreme_scales(subject: Subject, scale: float) -> None:
    windows = windows_at((0, 0, 0, 0), (0, 0, 2**62, -(2**62)), device=subject.device)
    for rle in subject(torch.ones(2, 16, 16, device=subject.device), windows, (20, 30), [scale]):
        assert sum(runs(rle["counts"])) == 600


TOO_LARGE: list[tuple[str, Callable[[], dict[str, Any]]]] = [
    ("gather_windows", lambda: {"maps": torch.ones(1, 2, 3, 3), "windows": windows_at((0, 0, 0, 0)), "size": 2**29}),
    ("gather_windows", lambda: {"maps": torch.ones(1, 2, 3, 3), "windows": windows_at((0, 0, 0, 0)), "size": 2**40}),
    ("merge_upsample", lambda: {"skip": huge(), "mask": huge(), "weight": torch.ones(1, 2, 3, 3), "bias": None}),
    ("add_upsample", lambda: {"horizontal": huge(), "mask": huge(), "weight": torch.ones(1, 1, 3, 3), "bias": None}),
    ("refine_windows", lambda: pass_of(stages=29)),
]


def huge() -> Tensor:
    """A map of 2^59 cells, all of them the same one in memory."""
    return torch.ones(1, 1, 1, 1).expand(1, 1, 2**31, 2**28)


def pass_of(stages: int) -> dict[str, Any]:
    weight = torch.ones(1, 1, 3, 3)
    return {
        "encoding": torch.ones(1, 1, 2, 2),
        "horizontals": [[torch.ones(1, 1, 4, 4)] * stages],
        "windows": windows_at((0, 0, 0, 0)),
        "stages": [[(weight, None)]] * stages,
        "head": (weight, None),
    }


@pytest.mark.parametrize(("op", "given"), TOO_LARGE, ids=[op for op, _ in TOO_LARGE])
def test_results_larger_than_any_memory_are_errors_cpu(op: str, given: Callable[[], dict[str, Any]]) -> None:
    with pytest.raises(RuntimeError):
        getattr(kernels, op)(**given(), backend="cpu")


@each("refine_windows")
def test_an_out_that_overlaps_itself_is_refused(subject: Subject) -> None:
    given = pass_of(stages=2)
    with pytest.raises(ValueError, match=re.escape("out must be without elements that share memory, got strides (")):
        subject(**given, out=torch.zeros(1, 1, 8).expand(1, 8, 8))
    wide = torch.zeros(8, 1, 8).transpose(0, 1)
    assert subject(**given, out=wide) is wide


# Strides.


def at_the_end(x: Tensor) -> Tensor:
    """Its last value is the last of its memory, its first far from the beginning."""
    whole = x.new_full((x.numel() + 1000,), math.nan)
    return whole[1000:].view(x.shape).copy_(x)


def transposed(x: Tensor) -> Tensor:
    return x.mT.contiguous().mT


def reversed_order(x: Tensor) -> Tensor:
    """Columns farthest apart, images next to each other."""
    return x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)


def sliding(x: Tensor) -> Tensor:
    """Rows that overlap in memory."""
    batch, channels, height, width = x.shape
    line = x.new_empty(batch, channels, height + width).copy_(
        x.flatten()[0] + torch.arange(height + width, device=x.device) % 5
    )
    return line.as_strided(x.shape, (channels * (height + width), height + width, 1, 1))


def lonely(x: Tensor) -> Tensor:
    """A stride that is never taken, as there is one index only, may be anything."""
    strides = [2**60 if size == 1 else stride for size, stride in zip(x.shape, x.stride(), strict=True)]
    return x.as_strided(x.shape, strides)


HOSTILE = [at_the_end, transposed, reversed_order, sliding, lonely]
SIZES = [(2, 5, 7), (1, 1, 9), (1, 9, 1), (1, 1, 1)]


@each(*REFINEMENT)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("layout", HOSTILE)
def test_strides(subject: Subject, layout: Callable[[Tensor], Tensor], size: tuple[int, int, int]) -> None:
    first, second, *rest = arguments(subject.op, Random(torch.float32, device=subject.device), size, (1, 2, 3))
    inputs = [layout(first), layout(second), *(at_the_end(x) for x in rest)]
    expected = FORMULAS[subject.op](*map(array, inputs), "bilinear", "zeros")
    out = subject(*(x.requires_grad_() if x.is_leaf else x for x in inputs))
    assert_near(out.detach(), expected, torch.float32)
    gradient = layout(Random(torch.float32, device=subject.device)(*out.shape))
    assert all(g.isfinite().all() for g in torch.autograd.grad(out, inputs, gradient))


@each("gather_windows")
@pytest.mark.parametrize("layout", HOSTILE)
def test_gathering_at_strides(subject: Subject, layout: Callable[[Tensor], Tensor]) -> None:
    random = Random(torch.float32, device=subject.device)
    maps = [layout(random(*shape)).requires_grad_() for shape in ((2, 3, 5, 7), (2, 3, 1, 4), (2, 3, 6, 1))]
    cells = [(image, scale, row, col) for image, _, row, col in SCATTERED for scale in range(3)]
    windows = windows_at(*cells, device=subject.device)
    out = subject(maps, windows, 3)
    assert np.array_equal(array(out.detach()), gather_windows([array(m.detach()) for m in maps], windows, 3, 1))
    gradients = torch.autograd.grad(out, maps, layout(torch.ones_like(out)))
    assert all(g.isfinite().all() for g in gradients)


@each("refine_windows")
@pytest.mark.parametrize("layout", HOSTILE)
@pytest.mark.parametrize(("count", "size"), [(7, 3), (1, 1)])
def test_refining_at_strides(subject: Subject, layout: Callable[[Tensor], Tensor], count: int, size: int) -> None:
    top_down = TopDownPass(torch.float32, device=subject.device, count=count, size=size)
    top_down.encoding = layout(top_down.encoding)
    top_down.horizontals = [[layout(m) for m in levels] for levels in top_down.horizontals]
    expected = top_down.formula("bilinear", "zeros")
    np.testing.assert_allclose(
        array(top_down(backend=subject.backend)), expected, rtol=0, atol=8e-6 * np.abs(expected).max()
    )


@each("encode_windows")
@pytest.mark.parametrize("layout", HOSTILE)
@pytest.mark.parametrize("count", [1, 3])
def test_encoding_at_strides(subject: Subject, layout: Callable[[Tensor], Tensor], count: int) -> None:
    logits = layout(Random(torch.float32, device=subject.device)(count, 1, 16, 16))[:, 0]
    windows = windows_at(*((0, 0, i, 1) for i in range(count)), device=subject.device)
    expected = subject(logits.contiguous(), windows, (30, 40), [0.8])
    assert subject(logits, windows, (30, 40), [0.8]) == expected

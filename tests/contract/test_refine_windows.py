"""refine_windows: the top-down pass, window by window from the formulas."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from .inputs import LAYOUTS, MODES, TOLERANCE, TopDownPass, array, windows_at
from .subjects import Subject, each, each_dtype

pytestmark = [pytest.mark.usefixtures("poisoned"), pytest.mark.grid]


def assert_logits(out: Tensor, expected: np.ndarray, dtype: torch.dtype) -> None:
    assert out.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # Rounding happens again at each of up to five convolutions.
    limit = 2 * TOLERANCE[dtype] * np.abs(expected).max(initial=1)
    np.testing.assert_allclose(array(out), expected, rtol=0, atol=limit)


@each_dtype("refine_windows")
@pytest.mark.parametrize(("upsample", "padding_mode"), MODES)
@pytest.mark.parametrize("convs", [1, 2])
def test_formula(subject: Subject, dtype: torch.dtype, upsample: str, padding_mode: str, convs: int) -> None:
    top_down = TopDownPass(dtype, device=subject.device, convs=convs)
    out = top_down(upsample=upsample, padding_mode=padding_mode, backend=subject.backend)
    assert_logits(out, top_down.formula(upsample, padding_mode), dtype)


@each("refine_windows")
def test_the_pass_of_the_paper(subject: Subject) -> None:
    """Windows of 160 pixels, k = 32, 16, 8, 4, 2."""
    top_down = TopDownPass(torch.float32, device=subject.device, count=3, size=10, widths=(32, 16, 8, 4, 2))
    out = top_down(padding_mode="replicate", backend=subject.backend)
    assert_logits(out, top_down.formula("bilinear", "replicate"), torch.float32)


@each("refine_windows")
@pytest.mark.parametrize("count", [0, 1, 64, 65, 130])
def test_any_number_of_windows(subject: Subject, count: int) -> None:
    top_down = TopDownPass(torch.float32, device=subject.device, count=count, size=1, widths=(2, 3), biases=False)
    out = top_down(backend=subject.backend)
    assert out.shape == (count, 2, 2)
    assert_logits(out, top_down.formula("bilinear", "zeros"), torch.float32)


@each_dtype("refine_windows")
@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8])
@pytest.mark.parametrize(("size", "stages"), [(3, 1), (4, 1), (3, 2), (5, 2)])
def test_threshold_gives_packed_bits(
    subject: Subject, dtype: torch.dtype, threshold: float, size: int, stages: int
) -> None:
    top_down = TopDownPass(dtype, device=subject.device, size=size, widths=(2, 3, 2)[: stages + 1])
    side = size << stages
    deviation, mean = torch.std_mean(top_down(backend=subject.backend).to(dtype))
    weight, bias = top_down.head
    assert bias is not None
    # A mean logit at the threshold, so that it splits the pixels.
    top_down.head = (weight / deviation, (bias - mean) / deviation + math.log(threshold / (1 - threshold)))
    logits, packed = top_down(backend=subject.backend), top_down(threshold=threshold, backend=subject.backend)
    assert packed.dtype == torch.uint8
    assert packed.shape == (7, side, math.ceil(side / 8))
    bits = np.unpackbits(packed.cpu().numpy(), axis=-1, bitorder="little")
    expected = array(logits) > math.log(threshold / (1 - threshold))
    assert np.array_equal(bits[..., :side], expected)
    assert not bits[..., side:].any()
    assert 0 < expected.mean() < 1


@each("refine_windows")
def test_threshold_is_not_rounded_to_the_dtype_of_the_maps(subject: Subject) -> None:
    # log(.2 / .8) = -1.3863; the nearest bf16 is -1.3828, which is above it.
    weight = torch.zeros(1, 1, 3, 3, dtype=torch.bfloat16, device=subject.device)
    bias = torch.tensor([-1.3828125], dtype=torch.bfloat16, device=subject.device)
    zeros = torch.zeros(1, 1, 4, 4, dtype=torch.bfloat16, device=subject.device)
    window = windows_at((0, 0, 0, 0), device=subject.device)
    packed = subject(zeros, [[zeros]], window, [[(weight, None)]], (weight, bias), threshold=0.2)
    assert (packed == 255).all()


@each_dtype("refine_windows", dtypes=[torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("threshold", [None, 0.3])
def test_out_is_written_and_returned(subject: Subject, dtype: torch.dtype, threshold: float | None) -> None:
    top_down = TopDownPass(dtype, device=subject.device)
    expected = top_down(threshold=threshold, backend=subject.backend)
    wide = torch.full((7, 12, 24), 77, dtype=expected.dtype, device=subject.device)
    for out in (torch.full_like(expected, 77), wide[..., ::2]):
        out = out[..., : expected.shape[-1]]
        assert top_down(threshold=threshold, out=out, backend=subject.backend) is out
        assert torch.equal(out, expected)


@each("refine_windows")
@pytest.mark.parametrize("first", [0, 1, 4])
def test_out_may_begin_anywhere(subject: Subject, first: int) -> None:
    """Kernels store whole vectors where they can: at addresses and rows of such sizes only."""
    top_down = TopDownPass(torch.float32, device=subject.device, count=2, size=4)
    expected = top_down(backend=subject.backend)
    assert expected.shape == (2, 16, 16)
    memory = torch.full((first + expected.numel() + 1,), 77.0, device=subject.device)
    out = memory[first:-1].view(expected.shape)
    assert torch.equal(top_down(out=out, backend=subject.backend), expected)
    assert (memory[:first] == 77).all() and memory[-1] == 77


@each("refine_windows")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(subject: Subject, layout: Callable[[Tensor], Tensor]) -> None:
    top_down = TopDownPass(torch.float32, device=subject.device)
    top_down.encoding = layout(top_down.encoding)
    top_down.horizontals = [[layout(m) for m in levels] for levels in top_down.horizontals]
    assert_logits(top_down(backend=subject.backend), top_down.formula("bilinear", "zeros"), torch.float32)


@each("refine_windows")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("size", "widths", "convs"), [(9, (1, 16, 3), 2), (16, (3, 2), 1)])
def test_channels_from_few_to_many_and_back(
    subject: Subject, size: int, widths: tuple[int, ...], convs: int, layout: Callable[[Tensor], Tensor]
) -> None:
    """Kernels keep the maps of few and of many channels in different orders, and may add horizontal maps where they
    lie."""
    top_down = TopDownPass(torch.float32, device=subject.device, size=size, widths=widths, convs=convs)
    top_down.horizontals = [[layout(m) for m in levels] for levels in top_down.horizontals]
    for upsample, padding_mode in MODES:
        out = top_down(upsample=upsample, padding_mode=padding_mode, backend=subject.backend)
        assert_logits(out, top_down.formula(upsample, padding_mode), torch.float32)


@each_dtype("refine_windows")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("upsample", "padding_mode"), MODES)
@pytest.mark.parametrize("size", [1, 3, 5])
def test_windows_in_the_lanes_of_vectors(
    subject: Subject,
    dtype: torch.dtype,
    size: int,
    upsample: str,
    padding_mode: str,
    layout: Callable[[Tensor], Tensor],
) -> None:
    """Kernels may take as many windows at a time as a vector has lanes, and those that are left one by one."""
    count = 7 if subject.interpreted else 37
    top_down = TopDownPass(dtype, device=subject.device, count=count, size=size, widths=(2, 5, 3), convs=2)
    top_down.encoding = layout(top_down.encoding)
    top_down.horizontals = [[layout(m) for m in levels] for levels in top_down.horizontals]
    out = top_down(upsample=upsample, padding_mode=padding_mode, backend=subject.backend)
    assert_logits(out, top_down.formula(upsample, padding_mode), dtype)


@each("refine_windows")
def test_it_has_no_gradient(subject: Subject) -> None:
    top_down = TopDownPass(torch.float32, device=subject.device)
    top_down.encoding.requires_grad_()
    with pytest.raises(NotImplementedError, match="refine_windows is for inference only"):
        top_down(backend=subject.backend).sum().backward()
    out = torch.empty(7, 12, 12, device=subject.device)
    assert not top_down(out=out, backend=subject.backend).requires_grad

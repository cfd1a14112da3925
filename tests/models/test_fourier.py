"""Convolutions by Fourier transforms of tiles against PyTorch's in double precision."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sharpmask.models import fourier
from sharpmask.models.fourier import FourierConvolution, convolution, frequencies


def parameters(kernel: int, channels: int = 6, outputs: int = 5) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(outputs, channels, kernel, kernel) / math.sqrt(channels * kernel**2), torch.randn(outputs)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles where PyTorch's convolution would be faster, too."""
    monkeypatch.setattr(fourier, "direct_cost", lambda *args: math.inf)


@pytest.mark.parametrize("side", range(2, 13, 2))
def test_half_of_the_frequencies_say_all(side: int) -> None:
    half = set(frequencies(side))
    conjugate = {(-y % side, -x % side) for y, x in half}
    assert half | conjugate == {(y, x) for y in range(side) for x in range(side)}
    assert half & conjugate == {(y, x) for y in (0, side // 2) for x in (0, side // 2)}
    assert len(frequencies(side)) == len(half)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("kernel", [2, 3, 7, 10])
@pytest.mark.parametrize("more", [2, 6])
@pytest.mark.parametrize("size", [(0, 0), (0, 30), (1, 6), (25, 3), (40, 41)])
def test_outputs_are_as_exact_as_those_of_a_convolution(kernel: int, more: int, size: tuple[int, int]) -> None:
    weight, bias = parameters(kernel)
    compute = FourierConvolution(weight, bias, kernel + kernel % 2 + more)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 6, *(length + kernel for length in size)).contiguous(memory_format=layout)
        exact = F.conv2d(x.double(), weight.double(), bias.double())
        error, direct = ((out - exact).abs().max() for out in (compute(x), F.conv2d(x, weight, bias)))
        assert compute(x).shape == exact.shape
        assert error <= max(4 * direct, 2e-6)


@pytest.mark.usefixtures("always")
def test_bands_of_tiles_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, bias = parameters(5)
    x = torch.randn(1, 6, 40, 30)
    whole = FourierConvolution(weight, bias, 8)(x)
    monkeypatch.setattr(fourier, "TILES", 20)
    torch.testing.assert_close(FourierConvolution(weight, bias, 8)(x), whole)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_cells_that_are_not_finite_reach_their_windows_alone(value: float) -> None:
    weight, bias = parameters(3)
    x = torch.randn(1, 6, 20, 20)
    x[0, 2, 10, 10] = value
    out = FourierConvolution(weight, bias, 10)(x)
    torch.testing.assert_close(out, F.conv2d(x, weight, bias), equal_nan=True)
    assert out.isfinite().sum() == out.numel() - 5 * 9


def test_what_is_faster_is_taken() -> None:
    assert isinstance(convolution(*parameters(10, 128, 512)), FourierConvolution)
    assert isinstance(convolution(*parameters(7, 64, 256)), FourierConvolution)
    for weight, bias in (parameters(1), parameters(3, 8, 8), parameters(40, 1, 1)):
        assert not isinstance(convolution(weight, bias), FourierConvolution)
    weight, bias = parameters(7, 64, 256)
    assert not isinstance(convolution(weight.double(), bias.double()), FourierConvolution)


def test_small_maps_are_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, bias = parameters(7, 64, 256)
    compute = convolution(weight, bias)
    monkeypatch.setattr(FourierConvolution, "_band", lambda *args: pytest.fail("tiles"))
    x = torch.randn(1, 64, 8, 9)
    torch.testing.assert_close(compute(x), F.conv2d(x, weight, bias))
    with pytest.raises(pytest.fail.Exception):
        compute(torch.randn(1, 64, 40, 40))


def test_autocast_is_left_to_pytorch() -> None:
    weight, bias = parameters(7, 64, 256)
    x = torch.randn(1, 64, 30, 30)
    with torch.autocast("cpu"):
        assert convolution(weight, bias)(x).dtype == torch.bfloat16

"""inverted_residual: the formula from plain loops, and what PyTorch expects of an op."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from .inputs import LAYOUTS, Random, array, assert_near
from .oracle import Array
from .subjects import Subject, each, each_dtype

pytestmark = [pytest.mark.usefixtures("poisoned"), pytest.mark.grid]

Conv = tuple[Tensor, Tensor | None]
SLACK = 4
"""Three convolutions, of which the tolerance knows one."""


class Block:
    """A block's input and convolutions. Its activations reach both ends of ReLU6."""

    def __init__(
        self,
        random: Random,
        shape: tuple[int, int, int, int] = (2, 5, 9, 11),
        *,
        hidden: int | None = 15,
        outputs: int = 5,
        kernel: int = 3,
        biases: bool = True,
    ) -> None:
        channels = shape[1]
        wide = hidden or channels
        self.x = 3 * random(*shape)
        self.expand = self._conv(random, biases, wide, channels, 1, 1) if hidden else None
        self.depthwise = self._conv(random, biases, wide, 1, kernel, kernel)
        self.project = self._conv(random, biases, outputs, wide, 1, 1)

    @staticmethod
    def _conv(random: Random, bias: bool, *shape: int) -> Conv:
        fan = shape[1] * shape[2] * shape[3]
        return 2 * random(*shape) / fan**0.5, random(shape[0]) if bias else None

    @property
    def convs(self) -> tuple[Conv | None, Conv, Conv]:
        return self.expand, self.depthwise, self.project

    def formula(self, stride: int = 1, residual: bool = False) -> Array:
        x = array(self.x)
        hidden = x if self.expand is None else relu6(pointwise(x, self.expand))
        out = pointwise(relu6(depthwise(hidden, self.depthwise, stride)), self.project)
        return out + x if residual else out


def relu6(x: Array) -> Array:
    return np.clip(x, 0, 6)


def pointwise(x: Array, conv: Conv) -> Array:
    weight, bias = conv
    out = np.einsum("oi,bihw->bohw", array(weight)[:, :, 0, 0], x)
    return out if bias is None else out + array(bias)[:, None, None]


def depthwise(x: Array, conv: Conv, stride: int) -> Array:
    weight, bias = array(conv[0])[:, 0], conv[1]
    kernel, before = weight.shape[-1], (weight.shape[-1] - stride) // 2
    batch, channels, height, width = x.shape
    out = np.zeros((batch, channels, -(-height // stride), -(-width // stride)))
    for y in range(out.shape[2]):
        for x_ in range(out.shape[3]):
            for ky in range(kernel):
                for kx in range(kernel):
                    row, col = y * stride - before + ky, x_ * stride - before + kx
                    if 0 <= row < height and 0 <= col < width:
                        out[:, :, y, x_] += weight[:, ky, kx] * x[:, :, row, col]
    return out if bias is None else out + array(bias)[:, None, None]


@each_dtype("inverted_residual")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize(("stride", "residual"), [(1, False), (1, True), (2, False)])
@pytest.mark.parametrize("hidden", [None, 15])
@pytest.mark.parametrize("biases", [True, False])
def test_formula(
    subject: Subject,
    dtype: torch.dtype,
    layout: Callable[[Tensor], Tensor],
    kernel: int,
    stride: int,
    residual: bool,
    hidden: int | None,
    biases: bool,
) -> None:
    block = Block(Random(dtype, device=subject.device), hidden=hidden, kernel=kernel, biases=biases)
    block.x = layout(block.x)
    out = subject(block.x, *block.convs, stride=stride, residual=residual)
    assert_near(out, block.formula(stride, residual), dtype, SLACK)


@each("inverted_residual")
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (7, 1), (5, 40), (33, 17)])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_any_size(subject: Subject, size: tuple[int, int], kernel: int, stride: int) -> None:
    block = Block(Random(torch.float32, device=subject.device), (1, 3, *size), kernel=kernel)
    assert_near(subject(block.x, *block.convs, stride=stride), block.formula(stride), torch.float32, SLACK)


@each("inverted_residual")
@pytest.mark.parametrize("channels", [1, 16, 33, 70])
@pytest.mark.parametrize("hidden", [None, 1, 64, 97])
@pytest.mark.parametrize("outputs", [1, 16, 35])
def test_any_number_of_channels(subject: Subject, channels: int, hidden: int | None, outputs: int) -> None:
    block = Block(Random(torch.float32, device=subject.device), (1, channels, 4, 6), hidden=hidden, outputs=outputs)
    block.x = block.x.to(memory_format=torch.channels_last)
    assert_near(subject(block.x, *block.convs), block.formula(), torch.float32, SLACK)


@each("inverted_residual")
@pytest.mark.parametrize("stride", [1, 2])
def test_maps_wider_than_what_is_held_in_cache(subject: Subject, stride: int) -> None:
    block = Block(Random(torch.float32, device=subject.device), (2, 8, 30, 150), hidden=192, outputs=8, kernel=5)
    assert_near(subject(block.x, *block.convs, stride=stride), block.formula(stride), torch.float32, SLACK)


@each("inverted_residual")
def test_no_images(subject: Subject) -> None:
    block = Block(Random(torch.float32, device=subject.device), (0, 5, 4, 6))
    assert subject(block.x, *block.convs).shape == (0, 5, 4, 6)


@each("inverted_residual")
@pytest.mark.parametrize("hidden", [None, 15])
def test_nan_and_infinity_spread_as_in_the_formula(subject: Subject, hidden: int | None) -> None:
    block = Block(Random(torch.float32, device=subject.device), (1, 5, 9, 11), hidden=hidden)
    block.x[0, 2, 4, 5] = float("nan")
    out = subject(block.x, *block.convs, residual=True)
    expected = np.zeros((9, 11), dtype=bool)
    expected[3:6, 4:7] = True
    assert np.array_equal(np.isnan(array(out)).any(axis=(0, 1)), expected)


@each("inverted_residual")
def test_weights_of_any_strides(subject: Subject) -> None:
    block = Block(Random(torch.float32, device=subject.device))
    strided = (conv and (torch.stack([conv[0], conv[0]], -1)[..., 0], conv[1]) for conv in block.convs)
    assert_near(subject(block.x, *strided), block.formula(), torch.float32, SLACK)


@each("inverted_residual")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(subject: Subject, layout: Callable[[Tensor], Tensor]) -> None:
    block = Block(Random(torch.float32, device=subject.device))
    expand, depthwise, project = block.convs
    arguments = (layout(block.x), *(expand or ()), *depthwise, *project, 1, True, subject.backend)
    torch.library.opcheck(torch.ops.sharpmask.inverted_residual.default, arguments)


@each("inverted_residual")
def test_gradients_are_refused(subject: Subject) -> None:
    block = Block(Random(torch.float32, device=subject.device))
    out = subject(block.x.requires_grad_(), *block.convs)
    with pytest.raises(NotImplementedError, match="inference only"):
        out.sum().backward()

"""Convolutions with their bias, sum and ReLU in one pass over memory, by weights that lie as oneDNN computes.

PyTorch has them for its compiler, as ops without a public name. Where they are missing, or compute something else, its
public ops take their place.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Stride = tuple[int, ...]


class PackedConvolution:
    """``conv`` for maps (1, C, H, W); its tensors are copied or kept. For inference.

    ``public``: only public ops, as exporters need. Otherwise the others run wherever they work.
    """

    def __init__(self, conv: nn.Conv2d, *, public: bool = False) -> None:
        weight = conv.weight.detach()
        self.bias = None if conv.bias is None else conv.bias.detach()
        assert isinstance(conv.padding, tuple)
        self.stride, self.pad = conv.stride, [length for length in conv.padding[::-1] for _ in range(2)]
        self.mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        fits = weight.device.type == "cpu" and weight.dtype == torch.float32
        self.packed = not public and fits and works()
        if self.packed:
            self.weight = _packed(weight, self.stride)
        else:
            self.weight = weight.contiguous(memory_format=torch.channels_last)

    def __call__(self, x: Tensor, *, relu: bool) -> Tensor:
        """The convolution of x, which :meth:`padded` gave, or its ReLU."""
        if self.packed:
            return _pointwise(x, self.weight, self.bias, self.stride, "relu" if relu else "none")
        out = F.conv2d(x, self.weight, self.bias, self.stride)
        return out.relu_() if relu else out

    def add_relu(self, x: Tensor, total: Tensor) -> Tensor:
        """ReLU(``total`` + the convolution of x, which :meth:`padded` gave), in the memory of ``total``."""
        if self.packed:
            return _pointwise_sum(x, self.weight, self.bias, self.stride, total)
        return total.add_(F.conv2d(x, self.weight, self.bias, self.stride)).relu_()

    def padded(self, x: Tensor) -> Tensor:
        """A map as the convolution takes it: a step of its own, so that the caller can drop the map."""
        return F.pad(x, self.pad, mode=self.mode) if any(self.pad) else x


def _packed(weight: Tensor, stride: Stride) -> Tensor:
    # The size of a map tells oneDNN which order to prepare; others may come.
    size = (1, weight.shape[1], 64, 64)
    return torch.ops.mkldnn._reorder_convolution_weight(weight.contiguous(), (0, 0), stride, (1, 1), 1, size)


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Stride, name: str) -> Tensor:
    return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, (0, 0), stride, (1, 1), 1, name, [], "")


def _pointwise_sum(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Stride, total: Tensor) -> Tensor:
    run = torch.ops.mkldnn._convolution_pointwise_.binary
    return run(total, x, weight, bias, (0, 0), stride, (1, 1), 1, "add", 1.0, "relu", [], "")


@cache
def works() -> bool:
    """Whether PyTorch's ops without a public name are there and compute what their names say."""
    generator = torch.Generator().manual_seed(0)
    weight, x, total = (torch.randn(s, generator=generator) for s in ((4, 3, 3, 3), (1, 3, 9, 11), (1, 4, 4, 5)))
    x, total = (t.contiguous(memory_format=torch.channels_last) for t in (x, total))
    stride, expected = (2, 2), F.conv2d(x, weight, None, 2)
    try:
        packed = _packed(weight, stride)
        found = _pointwise(x, packed, None, stride, "relu"), _pointwise_sum(x, packed, None, stride, total.clone())
    except (AttributeError, RuntimeError, TypeError):
        return False
    return all(torch.allclose(a, b.relu(), atol=1e-5) for a, b in zip(found, (expected, expected + total), strict=True))

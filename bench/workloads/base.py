"""What every workload is made of: a plain PyTorch module, the op that replaces it, and random inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PaddingMode = Literal["zeros", "replicate"]
Function = Callable[..., Any]
Transform = Callable[[nn.Module, tuple[Tensor, ...]], Function]
"""Makes a faster function of a module, given an example of its inputs."""
Randn = Callable[..., Tensor]


class Plain(nn.Module):
    """One part of a model, as people write it in plain PyTorch. Its inputs are tensors only.

    ``forward`` is what the measurements call eager. ``op`` computes the same from the same parameters, with one op of
    :mod:`sharpmask_kernels`.
    """

    maps = True
    """Whether the inputs are maps, which have a memory format."""
    traceable = True
    """Whether it has layers that a compiler can take. A loop over windows has none."""
    in_parts = False
    """Whether ``forward`` takes its batch in several parts."""

    def op(self, backend: str, *inputs: Tensor) -> Any:
        raise NotImplementedError

    def through(self, transform: Transform, example: tuple[Tensor, ...]) -> Function:
        """``forward`` with its layers replaced by what ``transform`` makes of them."""
        return transform(self, example)

    def whole(self) -> Plain:
        """Itself, from now on with the whole batch at once."""
        return self

    def comparable(self, result: Any) -> Any:
        """The result of ``forward`` or ``op`` in a form that both can be brought into."""
        return result

    def variants(self) -> dict[str, Function]:
        """Other ways to compute nearly the same."""
        return {}


class Workload(NamedTuple):
    op: str
    shape: str
    module: Callable[[torch.device], Plain]
    inputs: Callable[[Randn], tuple[Tensor, ...]]
    """Makes random inputs, in fp32 on the CPU."""
    training: bool = False
    """Whether the gradients of all inputs and parameters are computed too."""
    frozen: frozenset[int] = frozenset()
    """Positions of inputs that have no gradient even in training."""

    @property
    def mode(self) -> str:
        if not self.training:
            return "forward"
        return "training-frozen" if self.frozen else "training"

    @property
    def name(self) -> str:
        return f"{self.op} {self.shape} {self.mode}"


class Sizes(NamedTuple):
    batch: int
    """Windows in a training batch."""
    windows: tuple[int, ...]
    """Numbers of windows found on a photo."""
    photo: tuple[int, int]
    """Height and width of the photo."""


FULL = Sizes(32, (100, 1000), (480, 640))
SMALL = Sizes(2, (10,), (96, 128))


def parameters(conv: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a convolution, for an op that has no gradient."""
    assert isinstance(conv, nn.Conv2d)
    return conv.weight.detach(), None if conv.bias is None else conv.bias.detach()


def up2(x: Tensor) -> Tensor:
    """Bilinear upsampling to twice the size."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

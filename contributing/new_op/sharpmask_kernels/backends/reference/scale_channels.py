"""scale_channels in plain PyTorch, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ... import layout


def scale_channels(maps: Tensor, factor: Tensor) -> Tensor:
    return (maps * factor[:, None, None]).contiguous(memory_format=layout.memory_format(maps))


def scale_channels_backward(grad: Tensor, maps: Tensor, factor: Tensor, needs: Sequence[bool]) -> list[Tensor]:
    gradients = [
        (grad * factor[:, None, None]).contiguous(memory_format=layout.memory_format(maps)),
        (grad * maps).sum((0, 2, 3)),
    ]
    return [gradient for gradient, need in zip(gradients, needs, strict=True) if need]

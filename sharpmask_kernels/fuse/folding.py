"""Batch normalisation in evaluation mode, folded into the weights of the convolution before it."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

PROBES = 1024
"""Elements of a weight that are compared, besides its version, before what was folded from it is used again."""


def foldable(norm: nn.BatchNorm2d) -> bool:
    """Whether the normalisation is a fixed linear map of each channel."""
    return not norm.training and norm.running_mean is not None and norm.running_var is not None


def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one convolution that computes ``norm(conv(x))``.

    On the CPU, without gradients, they are kept until a parameter or a buffer changes. A write through ``.data`` leaves
    no mark on the tensor; values are compared to notice it: all of the normalisation's, ``PROBES`` of the weight's.
    """
    sources = (conv.weight, conv.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var)
    if not _keepable(sources):
        return _fold(norm.eps, *sources)
    kept = _kept.get(conv)
    if kept is None or not kept.holds(norm.eps, sources):
        with torch.inference_mode(False), torch.no_grad():
            kept = _Kept.of(norm.eps, sources)
        _kept[conv] = kept
    return kept.result


def _fold(
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
    gain: Tensor | None,
    offset: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
) -> tuple[Tensor, Tensor]:
    assert mean is not None and variance is not None  # foldable says so
    wide = torch.promote_types(weight.dtype, torch.float32)
    scale = torch.rsqrt(variance.to(wide) + eps)
    if gain is not None:
        scale = scale * gain.to(wide)
    shift = -mean.to(wide) if bias is None else bias.to(wide) - mean.to(wide)
    shift = shift * scale
    if offset is not None:
        shift = shift + offset.to(wide)
    return (weight.to(wide) * scale[:, None, None, None]).to(weight.dtype), shift.to(weight.dtype)


def _keepable(sources: tuple[Tensor | None, ...]) -> bool:
    tensors = [source for source in sources if source is not None]
    return (
        not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and all(type(x) in (Tensor, nn.Parameter) and x.device.type == "cpu" and not x.is_inference() for x in tensors)
        and not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))
    )


@dataclass(frozen=True)
class _Kept:
    """What was folded, and the marks by which a change of its sources shows."""

    sources: tuple[Tensor | None, ...]
    marks: tuple[object, ...]
    values: tuple[Tensor, ...]
    result: tuple[Tensor, Tensor]

    @staticmethod
    def of(eps: float, sources: tuple[Any, ...]) -> _Kept:
        values = tuple(probe.clone() for probe in _probes(sources))
        return _Kept(sources, _marks(eps, sources), values, _fold(eps, *sources))

    def holds(self, eps: float, sources: tuple[Tensor | None, ...]) -> bool:
        return (
            all(map(_same_object, self.sources, sources))
            and self.marks == _marks(eps, sources)
            and all(map(torch.equal, self.values, _probes(sources)))
        )


_kept: weakref.WeakKeyDictionary[nn.Conv2d, _Kept] = weakref.WeakKeyDictionary()
"""Outside the modules, so that copies, pickles and checkpoints do not see it."""


def _same_object(first: object, second: object) -> bool:
    return first is second


def _marks(eps: float, sources: tuple[Tensor | None, ...]) -> tuple[object, ...]:
    return eps, *((x._version, x.data_ptr(), x.dtype) for x in sources if x is not None)


def _probes(sources: tuple[Tensor | None, ...]) -> list[Tensor]:
    tensors = [x.detach() for x in sources if x is not None]
    rows = tensors[0].select(-1, 0).select(-1, 0)  # a view, whatever the memory format
    step = max(1, rows.numel() // PROBES)
    return [rows[:, ::step] if step < rows.shape[1] else rows[:: step // rows.shape[1] + 1], *tensors[1:]]

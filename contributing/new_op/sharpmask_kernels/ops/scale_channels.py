"""``scale_channels``: every channel of a map times a factor of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .. import checks, dispatch, layout
from ..backends.reference import scale_channels as reference
from . import calling
from .library import Case, define, differentiable


def scale_channels(maps: Tensor, factor: Tensor, *, backend: str | None = None) -> Tensor:
    """maps (B, C, H, W) times factor (C) -> (B, C, H, W). Differentiable in both."""
    checks.feature_map("maps", maps, "(B, C, H, W)")
    checks.tensor("factor", factor)
    checks.same_kind("factor", factor, maps)
    sizes = checks.shape_of("factor", factor)
    if sizes != maps.shape[1:2]:
        raise checks.refusal("factor", f"of shape {tuple(maps.shape[1:2])}", tuple(sizes))
    if calling.exporting():
        return reference.scale_channels(maps, factor)
    out: Tensor = _SCALE_CHANNELS(maps, factor, dispatch.choose("scale_channels", maps, backend))
    return out


_SCALE_CHANNELS = define(reference.scale_channels, lambda a: layout.empty_like(a.maps))
differentiable(
    _SCALE_CHANNELS,
    define(
        reference.scale_channels_backward,
        lambda a: [layout.empty_like(x) for x, need in zip((a.maps, a.factor), a.needs, strict=True) if need],
    ),
    inputs=("maps", "factor"),
    results=("out",),
)


def _cases(random: Callable[..., Tensor], device: torch.device) -> Iterator[tuple[str, Case]]:
    # Large enough for several threads; of one channel, too, where the gradient of the factor is one sum.
    for channels, memory_format in (
        (5, torch.contiguous_format),
        (5, torch.channels_last),
        (1, torch.contiguous_format),
    ):
        inputs = [random(2, channels, 80, 90).contiguous(memory_format=memory_format), random(channels)]
        name = f"{channels} channels, {memory_format}"
        yield name, Case(inputs, lambda backend, *given: scale_channels(*given, backend=backend))


CASES = {"scale_channels": _cases}

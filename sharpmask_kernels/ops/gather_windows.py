"""``gather_windows``: the top-N gather (section 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import checks, dispatch, layout
from ..backends.reference import gather_windows as reference
from ..windows import Windows
from . import calling
from .library import Case, define, differentiable, scattered_windows


def gather_windows(
    maps: Tensor | Sequence[Tensor],
    windows: Windows,
    size: int,
    *,
    step: int = 1,
    backend: str | None = None,
) -> Tensor:
    """Cut every window out of its map: the top-N gather.

    maps: one (B, C, H, W) per scale, or one tensor. ``size``: map cells on a window's side. ``step``: map
    cells per grid cell. -> (N, C, size, size): window i holds the cells from (row * step, col * step) on of
    image ``image`` at scale ``scale``, zero where it leaves its map. Differentiable in maps.
    """
    maps = [maps] if isinstance(maps, Tensor) else checks.listed("maps", maps)
    checks.pyramid("maps", maps)
    size, step = checks.integer("size", size, 1), checks.integer("step", step, 1)
    checks.windows(windows, maps[0].device, len(maps), maps[0].shape[0])
    arguments = (maps, windows.image, windows.scale, windows.row, windows.col, size, step)
    if calling.exporting():
        return reference.gather_windows(*arguments)
    out: Tensor = _GATHER_WINDOWS(*arguments, dispatch.choose("gather_windows", maps[0], backend))
    return out


def _fake(a: Any) -> Tensor:
    shape = (a.scale.shape[0], a.maps[0].shape[1], a.size, a.size)
    return layout.empty(shape, a.maps[0], layout.memory_format(*a.maps))


def _backward_fake(a: Any) -> list[Tensor]:
    sizes = zip(a.heights, a.widths, a.needs, strict=True)
    shapes = [(a.batch, a.grad.shape[1], height, width) for height, width, need in sizes if need]
    return [layout.empty(shape, a.grad, layout.chosen(a.channels_last)) for shape in shapes]


def _derived(a: Any) -> dict[str, Any]:
    """What the backward takes of the maps, which it does not keep."""
    return {
        "batch": a.maps[0].shape[0],
        "heights": [m.shape[2] for m in a.maps],
        "widths": [m.shape[3] for m in a.maps],
        "channels_last": layout.memory_format(*a.maps) == torch.channels_last,
    }


_GATHER_WINDOWS = define(reference.gather_windows, _fake)
differentiable(
    _GATHER_WINDOWS,
    define(reference.gather_windows_backward, _backward_fake),
    inputs=("maps",),
    results=("out",),
    derived=_derived,
)


def _cases(random: Callable[..., Tensor], device: torch.device) -> Iterator[tuple[str, Case]]:
    windows = scattered_windows(device)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        maps = [random(2, 19, *size).contiguous(memory_format=memory_format) for size in ((11, 13), (7, 9))]

        def run(backend: str, *maps: Tensor) -> Tensor:
            return gather_windows(maps, windows, 6, step=2, backend=backend)

        yield str(memory_format), Case(maps, run)


CASES = {"gather_windows": _cases}

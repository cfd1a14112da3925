"""What is measured: ops and the shapes that SharpMask has for them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sharpmask_kernels import Windows, topk_windows
from sharpmask_kernels.windows import STRIDE, grid_size, scaled_size

from . import plain
from .plain import PaddingMode, Plain

WINDOW = 160
"""Pixels on a window's side."""

CELLS = WINDOW // STRIDE

LEVELS = [(10, 1024, 32, 32, 16), (20, 512, 16, 16, 8), (40, 256, 8, 8, 4), (80, 64, 4, 4, 2)]
"""Of each refinement module: side of its maps for one window, channels of feature, skip, mask and output. SharpMask,
section 3.2, with k = 32 and a ResNet-50 trunk."""

MASK_CHANNELS = (32, 16, 8, 4, 2)
SCALES = [2 ** (e / 2) for e in range(-5, 2)]

Randn = Callable[..., Tensor]


class Workload(NamedTuple):
    op: str
    shape: str
    module: Callable[[torch.device], Plain]
    inputs: Callable[[Randn], tuple[Tensor, ...]]
    """Random inputs, in fp32 on the CPU."""
    training: bool = False
    """Whether the gradients of all inputs and parameters are due, too."""
    frozen: frozenset[int] = frozenset()
    """Inputs, by place, of which no gradient is due all the same."""

    @property
    def name(self) -> str:
        return f"{self.op} {self.shape} {'training' if self.training else 'forward'}"


class Sizes(NamedTuple):
    batch: int
    """Windows in a training batch."""
    windows: tuple[int, ...]
    """Windows found on a photo."""
    photo: tuple[int, int]
    """Its height and width."""


FULL = Sizes(32, (100, 1000), (480, 640))
SMALL = Sizes(2, (10,), (96, 128))


DIFFERENTIABLE = ("merge_upsample", "refine", "add_upsample", "gather_windows")


def workloads(sizes: Sizes) -> Iterator[Workload]:
    """Op by op; each shape forward only and, where there are gradients, with them."""
    for workload in forward(sizes):
        yield workload
        if workload.op in DIFFERENTIABLE:
            yield workload._replace(training=True)


def forward(sizes: Sizes) -> list[Workload]:
    refinements = itertools.product(("merge_upsample", "refine", "add_upsample"), range(len(LEVELS)))
    return [
        *(refinement(op, level, sizes.batch) for op, level in refinements),
        *(gather(stage, count, sizes.photo) for stage in (0, 3) for count in sizes.windows),
        *(refine_windows(count, sizes.photo) for count in sizes.windows),
        encode_windows(sizes.windows[0], sizes.photo),
    ]


def refinement(op: str, level: int, batch: int) -> Workload:
    """One of the three forms of the refinement module, on the maps of a batch of windows."""
    side, feature, skip, mask, out = LEVELS[level]
    module, channels = {
        "merge_upsample": (lambda _: plain.MergeUpsample(skip, mask, out), (skip, mask)),
        "refine": (lambda _: plain.Refine(feature, skip, mask, out), (feature, mask)),
        "add_upsample": (lambda _: plain.AddUpsample(mask, out), (out, mask)),
    }[op]
    shape = f"level{level + 1}-{batch}x{side}x{side}"
    return Workload(op, shape, module, lambda randn: tuple(randn(batch, c, side, side) for c in channels))


def gather(stage: int, count: int, photo: tuple[int, int]) -> Workload:
    """The horizontal maps of a refinement module, cut out at the best windows of a photo."""
    size = CELLS << stage
    return Workload(
        "gather_windows",
        f"stage{stage + 1}-{count}x{size}x{size}",
        lambda device: plain.GatherWindows(best_windows(count, photo, device), size, 1 << stage),
        lambda randn: tuple(pyramid(randn, photo, stage)),
    )


def refine_all(batch: int, feature: int | None = None) -> Workload:
    """The four refinement modules of a batch of windows, one after another; ``feature``: channels of every feature."""
    widths = [(feature or f, skip, mask, out) for _, f, skip, mask, out in LEVELS]

    def inputs(randn: Randn) -> tuple[Tensor, ...]:
        sides = [side for side, *_ in LEVELS]
        features = (randn(batch, w[0], side, side) for w, side in zip(widths, sides, strict=True))
        return randn(batch, LEVELS[0][3], sides[0], sides[0]), *features

    name = "all-levels" if feature is None else f"all-levels-of-{feature}"
    return Workload("refine", f"{name}-{batch}", lambda _: plain.RefineAll(widths), inputs)


def refine_windows(
    count: int, photo: tuple[int, int], padding_mode: PaddingMode = "replicate", threshold: float | None = None
) -> Workload:
    def inputs(randn: Randn) -> tuple[Tensor, ...]:
        stages = [pyramid(randn, photo, stage) for stage in range(len(LEVELS))]
        by_scale = itertools.chain.from_iterable(zip(*stages, strict=True))
        return randn(count, MASK_CHANNELS[0], CELLS, CELLS), *by_scale

    return Workload(
        "refine_windows",
        f"{count}x{WINDOW}x{WINDOW}" + ("" if threshold is None else "-bits"),
        lambda device: plain.RefineWindows(
            best_windows(count, photo, device), CELLS, MASK_CHANNELS, padding_mode, threshold
        ),
        inputs,
    )


def encode_windows(count: int, photo: tuple[int, int]) -> Workload:
    def inputs(randn: Randn) -> tuple[Tensor, ...]:
        # Masks of a few blobs each: noise would have far more runs than objects have.
        blobs = F.interpolate(4 * randn(count, 1, 6, 6), size=(WINDOW, WINDOW), mode="bicubic")
        return (blobs[:, 0],)

    return Workload(
        "encode_windows",
        f"{count}x{WINDOW}x{WINDOW}",
        lambda device: plain.EncodeWindows(best_windows(count, photo, device), photo, SCALES),
        inputs,
    )


def pyramid(randn: Randn, photo: tuple[int, int], stage: int) -> Iterator[Tensor]:
    """The horizontal maps of a stage, one for each scale of a photo."""
    for scale in SCALES:
        rows, cols = (cells + CELLS - 1 for cells in grid_size(*scaled_size(*photo, scale), WINDOW))
        yield randn(1, LEVELS[stage][-1], rows << stage, cols << stage)


def best_windows(count: int, photo: tuple[int, int], device: torch.device) -> Windows:
    """The windows of the best of random scores: spread over the pyramid, none leaving its map."""
    generator = torch.Generator().manual_seed(0)
    grids = [grid_size(*scaled_size(*photo, scale), WINDOW) for scale in SCALES]
    scores = [torch.rand(1, 1, *grid, generator=generator).to(device) for grid in grids]
    return topk_windows(scores, count)

"""Parts of a model as people write them in plain PyTorch, each beside the op that takes its place.

``forward`` is what the measurements call eager: layers and operations of PyTorch, and pycocotools. ``op`` computes the
same from the same parameters with one op of :mod:`sharpmask_kernels`.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco
from torch import Tensor, nn

import sharpmask_kernels as kernels
from sharpmask_kernels import Windows
from sharpmask_kernels.windows import scaled_size

PaddingMode = Literal["zeros", "replicate"]
Function = Callable[..., Any]
Transform = Callable[[nn.Module, tuple[Tensor, ...]], Function]


class Plain(nn.Module):
    """One part of a model. Inputs are tensors only; all else is the module's."""

    maps = True
    """Whether the inputs are maps, which have a memory format."""
    traceable = True
    """Whether there are layers for a compiler to take, and not loops over windows only."""

    def op(self, backend: str, *inputs: Tensor) -> Any:
        raise NotImplementedError

    def through(self, transform: Transform, example: tuple[Tensor, ...]) -> Function:
        """``forward`` with its layers run by what ``transform`` makes of them, given an example of their inputs."""
        return transform(self, example)

    def comparable(self, result: Any) -> Any:
        """The result of ``forward`` or ``op`` in one form."""
        return result

    def variants(self) -> dict[str, Function]:
        """Other ways to compute about the same."""
        return {}


def up2(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class MergeUpsample(Plain):
    def __init__(self, skip_channels: int, mask_channels: int, out_channels: int) -> None:
        super().__init__()
        self.merge = nn.Conv2d(skip_channels + mask_channels, out_channels, 3, padding=1)

    def forward(self, skip: Tensor, mask: Tensor) -> Tensor:
        return up2(F.relu(self.merge(torch.cat([skip, mask], dim=1))))

    def op(self, backend: str, *inputs: Tensor) -> Tensor:
        skip, mask = inputs
        return kernels.merge_upsample(skip, mask, self.merge.weight, self.merge.bias, backend=backend)


class Refine(MergeUpsample):
    def __init__(self, feature_channels: int, skip_channels: int, mask_channels: int, out_channels: int) -> None:
        super().__init__(skip_channels, mask_channels, out_channels)
        self.skip = nn.Conv2d(feature_channels, skip_channels, 3, padding=1)

    def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
        return super().forward(F.relu(self.skip(feature)), mask)

    def op(self, backend: str, *inputs: Tensor) -> Tensor:
        feature, mask = inputs
        skip, merge = self.skip, self.merge
        return kernels.refine(feature, mask, skip.weight, skip.bias, merge.weight, merge.bias, backend=backend)


class RefineAll(Plain):
    """Refinement modules, each on the result of the one before. Inputs: the mask encoding, then the features."""

    def __init__(self, levels: Sequence[tuple[int, int, int, int]]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(Refine(*channels) for channels in levels)

    def forward(self, mask: Tensor, *features: Tensor) -> Tensor:
        for level, feature in zip(self.levels, features, strict=True):
            mask = level(feature, mask)
        return mask

    def op(self, backend: str, *inputs: Tensor) -> Tensor:
        mask, *features = inputs
        for level, feature in zip(self.levels, features, strict=True):
            mask = cast(Refine, level).op(backend, feature, mask)
        return mask


class AddUpsample(Plain):
    def __init__(self, mask_channels: int, out_channels: int) -> None:
        super().__init__()
        self.vertical = nn.Conv2d(mask_channels, out_channels, 3, padding=1, bias=False)

    def forward(self, horizontal: Tensor, mask: Tensor) -> Tensor:
        return up2(F.relu(horizontal + self.vertical(mask)))

    def op(self, backend: str, *inputs: Tensor) -> Tensor:
        horizontal, mask = inputs
        return kernels.add_upsample(horizontal, mask, self.vertical.weight, None, backend=backend)


def cut(maps: Sequence[Tensor], windows: Windows, size: int, step: int) -> Tensor:
    """The windows one after another, none of which leaves its map."""
    crops = []
    for image, scale, row, col in zip(*(field.tolist() for field in windows[1:]), strict=True):
        top, left = row * step, col * step
        crops.append(maps[scale][image, :, top : top + size, left : left + size])
    return torch.stack(crops)


class GatherWindows(Plain):
    traceable = False

    def __init__(self, windows: Windows, size: int, step: int) -> None:
        super().__init__()
        self.windows, self.size, self.step = windows, size, step

    def forward(self, *maps: Tensor) -> Tensor:
        return cut(maps, self.windows, self.size, self.step)

    def op(self, backend: str, *inputs: Tensor) -> Tensor:
        return kernels.gather_windows(inputs, self.windows, self.size, step=self.step, backend=backend)


class Cascade(nn.Module):
    """All stages and the head on some windows. Inputs: the encoding, then each stage's horizontal maps, cut out."""

    def __init__(self, mask_channels: Sequence[int], padding_mode: PaddingMode, limit: float | None) -> None:
        super().__init__()
        self.limit = limit
        # As SharpMask has them, with the bias in the horizontal half.
        self.stages = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, padding_mode=padding_mode, bias=False)
            for a, b in itertools.pairwise(mask_channels)
        )
        self.head = nn.Conv2d(mask_channels[-1], 1, 3, padding=1, padding_mode=padding_mode)

    def forward(self, encoding: Tensor, *horizontals: Tensor) -> Tensor:
        x = encoding
        for vertical, horizontal in zip(self.stages, horizontals, strict=True):
            x = up2(F.relu(horizontal + vertical(x)))
        logits = self.head(x)[:, 0]
        return logits if self.limit is None else logits > self.limit


class RefineWindows(Plain):
    """Chunk after chunk of windows into one output. Inputs: the encoding, then the horizontal maps, scale by scale.

    With a ``threshold`` the result is booleans; of the op, packed bits.
    """

    chunk = 50
    """Windows that are refined at a time. PyTorch, ONNX Runtime and OpenVINO take longer with 10 or 25, about as long
    with 100."""

    def __init__(
        self,
        windows: Windows,
        size: int,
        mask_channels: Sequence[int],
        padding_mode: PaddingMode = "replicate",
        threshold: float | None = None,
    ) -> None:
        super().__init__()
        self.windows, self.size, self.padding_mode, self.threshold = windows, size, padding_mode, threshold
        limit = None if threshold is None else math.log(threshold / (1 - threshold))
        self.cascade = Cascade(mask_channels, padding_mode, limit)
        self.out: Tensor | None = None

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.run(self.cascade, *inputs)

    def run(self, cascade: Function, *inputs: Tensor) -> Tensor:
        count, side = len(inputs[0]), self.size << len(self.cascade.stages)
        dtype = inputs[0].dtype if self.threshold is None else torch.bool
        out = self.output(inputs[0], (count, side, side), dtype)
        for first in range(0, count, self.chunk):
            chunk = slice(first, first + self.chunk)
            out[chunk] = cascade(*self.cut(inputs, chunk))
        return out

    def cut(self, inputs: Sequence[Tensor], chunk: slice) -> list[Tensor]:
        """The inputs of the cascade of some windows."""
        encoding, *horizontals = inputs
        stages, windows = len(self.cascade.stages), self.windows.select(chunk)
        crops = (cut(horizontals[j::stages], windows, self.size << j, 1 << j) for j in range(stages))
        return [encoding[chunk], *crops]

    def output(self, like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Allocated by the first call."""
        if self.out is None:
            self.out = like.new_empty(shape, dtype=dtype)
        return self.out

    def through(self, transform: Transform, example: tuple[Tensor, ...]) -> Function:
        return functools.partial(self.run, transform(self.cascade, tuple(self.cut(example, slice(0, self.chunk)))))

    def comparable(self, result: Tensor) -> Tensor:
        if result.dtype != torch.uint8:
            return result
        return torch.from_numpy(np.unpackbits(result.cpu().numpy(), axis=-1, bitorder="little")).bool()

    def op(self, backend: str, *inputs: Tensor) -> Tensor:
        encoding, *maps = inputs
        count, side = len(self.cascade.stages), self.size << len(self.cascade.stages)
        shape, dtype = (len(encoding), side, side), torch.promote_types(encoding.dtype, torch.float32)
        if self.threshold is not None:
            shape, dtype = (len(encoding), side, -(-side // 8)), torch.uint8
        return kernels.refine_windows(
            encoding,
            [maps[i : i + count] for i in range(0, len(maps), count)],
            self.windows,
            [[(cast(nn.Conv2d, stage).weight, None)] for stage in self.cascade.stages],
            (self.cascade.head.weight, self.cascade.head.bias),
            padding_mode=self.padding_mode,
            threshold=self.threshold,
            out=self.output(encoding, shape, dtype),
            backend=backend,
        )


class EncodeWindows(Plain):
    """Logits to run lengths: every window is resampled at the pixels of its image, as instance segmentation does."""

    maps = False
    traceable = False
    threshold = 0.2

    def __init__(self, windows: Windows, image_size: tuple[int, int], scales: Sequence[float]) -> None:
        super().__init__()
        self.windows, self.image_size, self.scales = windows, image_size, scales

    def forward(self, logits: Tensor) -> list[Any]:
        """Of each window the pixels of the image that lie in it are sampled."""
        return self.each(self.sampled, logits)

    def variants(self) -> dict[str, Function]:
        return {
            "crop-first": functools.partial(self.each, self.cropped),
            "full-size": functools.partial(self.each, self.full_size),
        }

    def each(self, encode: Function, logits: Tensor) -> list[Any]:
        cells = zip(*(field.tolist() for field in self.windows[2:]), strict=True)
        return [encode(window, *cell) for window, cell in zip(logits.float(), cells, strict=True)]

    def sampled(self, logits: Tensor, scale: int, *cell: int) -> Any:
        (rows, y), (cols, x) = self.axes(logits, scale, *cell)
        grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1)
        crop = F.grid_sample(logits[None, None], grid[None], padding_mode="border", align_corners=False)[0, 0]
        return self.pasted(crop, rows, cols)

    def cropped(self, logits: Tensor, scale: int, *cell: int) -> Any:
        """Crops the logits inside the image, at whole cells, and resizes them."""
        (rows, y), (cols, x) = self.axes(logits, scale, *cell)
        side = len(logits)
        (top, bottom), (left, right) = (
            (int((position[0] + 1) / 2 * side), math.ceil((position[-1] + 1) / 2 * side)) for position in (y, x)
        )
        crop = logits[None, None, top:bottom, left:right]
        return self.pasted(F.interpolate(crop, size=(len(y), len(x)), mode="bilinear")[0, 0], rows, cols)

    def full_size(self, logits: Tensor, scale: int, row: int, col: int) -> Any:
        """Resizes the whole scaled image around the window."""
        side = len(logits)
        height, width = scaled_size(*self.image_size, self.scales[scale])
        # Windows hang over on all sides by half a window, by somewhat more below and to the right.
        canvas = logits.new_full((1, 1, height + 2 * side, width + 2 * side), -1e4)
        canvas[..., 16 * row : 16 * row + side, 16 * col : 16 * col + side] = logits
        half = side // 2
        inside = canvas[..., half : half + height, half : half + width]
        return self.pasted(F.interpolate(inside, size=self.image_size, mode="bilinear")[0, 0], slice(None), slice(None))

    def pasted(self, crop: Tensor, rows: slice, cols: slice) -> Any:
        mask = np.zeros(self.image_size, dtype=np.uint8, order="F")
        mask[rows, cols] = (crop > math.log(self.threshold / (1 - self.threshold))).cpu().numpy()
        return coco.encode(mask)

    def axes(self, logits: Tensor, scale: int, *cell: int) -> list[tuple[slice, Tensor]]:
        ends = zip(self.image_size, cell, strict=True)
        return [self.samples(length, self.scales[scale], first, logits) for length, first in ends]

    def samples(self, length: int, scale: float, cell: int, logits: Tensor) -> tuple[slice, Tensor]:
        """The image pixels that lie in a window, along one axis, and where in it, from -1 to 1."""
        side = len(logits)
        pixels = torch.arange(length, dtype=torch.float64, device=logits.device)
        position = (pixels + 0.5) * (scaled_size(length, length, scale)[0] / length) + side / 2 - 16 * cell
        inside = ((position >= 0) & (position < side)).nonzero()[:, 0]
        first, last = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)
        return slice(first, last), (2 * position[first:last] / side - 1).to(logits.dtype)

    def op(self, backend: str, *inputs: Tensor) -> list[dict[str, Any]]:
        (logits,) = inputs
        return kernels.encode_windows(
            logits, self.windows, self.image_size, self.scales, threshold=self.threshold, backend=backend
        )

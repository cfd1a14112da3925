"""gather_windows in plain PyTorch, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import layout
from ...windows import FAR
from .refinement import apart, asked


def gather_windows(
    maps: Sequence[Tensor], image: Tensor, scale: Tensor, row: Tensor, col: Tensor, size: int, step: int
) -> Tensor:
    # All maps as one table of pixels, a row of zeros last: a window is a plain look-up, whatever its scale.
    batch, channels = maps[0].shape[:2]
    pixels = [m.permute(0, 2, 3, 1).reshape(-1, channels) for m in maps]
    table = torch.cat([*pixels, maps[0].new_zeros(1, channels)])
    heights, widths = [m.shape[2] for m in maps], [m.shape[3] for m in maps]
    index = pixel_index(image, scale, row, col, batch, heights, widths, size, step)
    gathered = table.index_select(0, index.flatten()).view(scale.shape[0], size, size, channels).permute(0, 3, 1, 2)
    return layout.arranged(gathered, layout.memory_format(*maps))


def gather_windows_backward(
    grad: Tensor,
    image: Tensor,
    scale: Tensor,
    row: Tensor,
    col: Tensor,
    batch: int,
    heights: Sequence[int],
    widths: Sequence[int],
    channels_last: bool,
    needs: Sequence[bool],
    step: int,
) -> list[Tensor]:
    channels, size = grad.shape[1:3]
    index = pixel_index(image, scale, row, col, batch, heights, widths, size, step).flatten()
    wide = torch.float64 if grad.dtype == torch.float64 else torch.float32
    values = grad.permute(0, 2, 3, 1).reshape(-1, channels).to(wide)
    pixels = [batch * h * w for h, w in zip(heights, widths, strict=True)]
    table = values.new_zeros(sum(pixels) + 1, channels)
    # Of PyTorch's two ways of adding rows, each device has one that adds in a fixed order.
    if grad.is_cuda:
        table.index_put_((index,), values, accumulate=True)
    else:
        table.index_add_(0, index, values)
    tables = apart(table.to(grad.dtype)[:-1], pixels, dim=0)
    gradients = [
        t.view(batch, h, w, channels).permute(0, 3, 1, 2) for t, h, w in zip(tables, heights, widths, strict=True)
    ]
    return asked(gradients, needs, channels_last)


def pixel_index(
    image: Tensor,
    scale: Tensor,
    row: Tensor,
    col: Tensor,
    batch: int,
    heights: Sequence[int],
    widths: Sequence[int],
    size: int,
    step: int,
) -> Tensor:
    """Where the cells of every window stand in the table of the pixels of all maps, (N, size, size).

    The entry behind the last pixel stands for all that is outside. No shape here depends on the windows' values.
    """
    # Scale by scale, with plain numbers: a tensor of the sizes would have to be copied to the device.
    known = (image >= 0) & (image < batch)
    height, width, base = (torch.zeros_like(scale) for _ in range(3))
    first = 0
    for i, (h, w) in enumerate(zip(heights, widths, strict=True)):
        here = (scale == i) & known
        height, width, base = height.where(~here, h), width.where(~here, w), base.where(~here, image * (h * w) + first)
        first += batch * h * w
    height, width, base = height[:, None, None], width[:, None, None], base[:, None, None]
    cells = torch.arange(size, device=scale.device)
    rows = first_cell(row, step)[:, None, None] + cells[:, None]
    cols = first_cell(col, step)[:, None, None] + cells
    # A window of no image or scale has height 0, so that no cell of it is inside.
    inside = (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
    return torch.where(inside, base + rows * width + cols, first)


def first_cell(cell: Tensor, step: int) -> Tensor:
    limit = FAR // step + 1
    return cell.clamp(-limit, limit) * step

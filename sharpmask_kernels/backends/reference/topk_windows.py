"""topk_windows in plain PyTorch, for every device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def topk_windows(scores: Sequence[Tensor], n: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    device = scores[0].device
    batch = scores[0].shape[0]
    flat = torch.cat([s.detach().float().flatten(1) for s in scores], dim=1)
    flat = torch.where(flat.isnan(), -math.inf, flat)
    # Equal scores stay in the order scale, row, col, which is the order of the columns here. ONNX has no stable sort,
    # but its TopK is stable, as PyTorch's own is not.
    if torch.onnx.is_in_onnx_export():
        score, order = torch.topk(flat, min(n, flat.shape[1]), dim=1)
    else:
        score, order = torch.sort(flat, dim=1, descending=True, stable=True)
        score, order = score[:, :n], order[:, :n]

    def per_cell(values: list[Tensor]) -> Tensor:
        return torch.cat(values)[order].flatten()

    grids = [(s.shape[2], s.shape[3]) for s in scores]
    cells = [torch.arange(h * w, device=device) for h, w in grids]
    image = torch.arange(batch, device=device)[:, None].expand_as(order)
    return (
        score.flatten(),
        image.flatten(),
        per_cell([torch.full_like(cell, i) for i, cell in enumerate(cells)]),
        per_cell([cell // w for cell, (_, w) in zip(cells, grids, strict=True)]),
        per_cell([cell % w for cell, (_, w) in zip(cells, grids, strict=True)]),
    )

"""Trunk and heads of a model as a graph of OpenVINO, for pictures of any size."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...models import DeepMask

if TYPE_CHECKING:
    import openvino


class BottomUp(nn.Module):
    """A framed picture (1, H, W, 3) to score, codes and, with ``taps``, trunk maps, all (1, rows, cols, C).

    Channels come last, as OpenVINO computes, so nothing is transposed at the ends.
    """

    def __init__(self, model: DeepMask, *, taps: bool) -> None:
        super().__init__()
        self.model = model  # whose parameters the graph may hold
        self.form = model.for_inference()
        self.with_taps = taps

    def forward(self, framed: Tensor) -> tuple[Tensor, ...]:
        taps = self.form.trunk.taps(framed.permute(0, 3, 1, 2))
        codes, score = self.form.heads(taps)
        return tuple(x.permute(0, 2, 3, 1) for x in (score, codes, *(taps if self.with_taps else ())))


def converted(model: DeepMask, *, taps: bool) -> openvino.Model:
    """The graph of a model's form for inference."""
    import openvino

    module = BottomUp(model, taps=taps)
    example = module.form.framed(torch.zeros(1, 3, model.window + 1, model.window + 7)).permute(0, 2, 3, 1)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's tracer, which OpenVINO uses
        return openvino.convert_model(module, example_input=example, input=[openvino.PartialShape([1, -1, -1, 3])])

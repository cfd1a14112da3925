"""A model's trunk, and heads, as a graph of OpenVINO, for pictures of any size."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from ...models import DeepMask

if TYPE_CHECKING:
    import openvino


class Contents(NamedTuple):
    """What a graph computes beside the trunk."""

    heads: bool
    """Codes and scores. In fp32 this package's convolution of windows is faster than OpenVINO's."""
    refine: bool
    """All trunk maps, not only those that the heads read."""


class BottomUp(nn.Module):
    """A framed picture (1, H, W, 3) to the graph's outputs: codes and score, then trunk maps, all (1, rows, cols, C).

    Channels come last in memory, as in the rest of the search.
    """

    def __init__(self, model: DeepMask, contents: Contents) -> None:
        super().__init__()
        self.model = model  # whose parameters the graph may hold
        self.form = model.for_export()
        self.contents = contents

    def forward(self, framed: Tensor) -> tuple[Tensor, ...]:
        taps = self.form.trunk.taps(framed.permute(0, 3, 1, 2))
        heads = self.form.heads(taps) if self.contents.heads else ()
        shown = taps if self.contents.refine else taps[: not self.contents.heads]
        return tuple(x.permute(0, 2, 3, 1) for x in (*heads, *shown))


def converted(model: DeepMask, contents: Contents) -> openvino.Model:
    """The graph of a model's form for inference."""
    import openvino

    module = BottomUp(model, contents)
    example = module.form.framed(torch.zeros(1, 3, model.window + 1, model.window + 7)).permute(0, 2, 3, 1)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's tracer, which OpenVINO uses
        return openvino.convert_model(module, example_input=example, input=[openvino.PartialShape([1, -1, -1, 3])])

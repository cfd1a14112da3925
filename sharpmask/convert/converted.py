"""What a conversion gives."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from ..models import DeepMask, SearchConfig
from ..models.deepmask import MEAN, STD


@dataclass
class Converted:
    """A converted model, and the tensors of its file that it did not take."""

    model: DeepMask
    unused: list[str] = field(default_factory=list)
    """Tensors that are not part of the model, by their place in the file; buffers and gradients are left out."""


def finished(model: DeepMask) -> DeepMask:
    """A model that has taken its tensors, with the buffers that no file holds and the search of the authors' code."""
    model.mean, model.std = (torch.tensor(value).view(3, 1, 1) for value in (MEAN, STD))
    model.search = replace(SearchConfig.for_window(model.window), geometry="released")
    return model.eval()

"""The bottom-up pass by torch.compile, which fuses what lies between a GPU's convolutions."""

from __future__ import annotations

from typing import Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ...errors import DataError
from ...models import DeepMask
from ...models.inference import InferenceForm, InferenceMaps

_forms: Final[WeakKeyDictionary[InferenceForm, CompiledForm]] = WeakKeyDictionary()


def check(model: DeepMask) -> None:
    """Raise ``DataError`` unless the model is on a GPU: on CPUs engine torch is faster."""
    if model.mean.device.type != "cuda":
        raise DataError(
            f"device must be cuda for engine compile, got {model.mean.device}; on CPUs engine torch is faster"
        )


class CompiledForm(InferenceForm):
    """A form whose trunk and heads are one compiled graph for pictures of all sizes.

    A graph for each size would be a little faster, but photos of a folder have many sizes, each with a size a scale.
    """

    def __init__(self, form: InferenceForm) -> None:
        super().__init__(form.trunk, form.pad, form.heads)
        self._maps = torch.compile(self._computed, dynamic=True)

    def __call__(self, picture: Tensor) -> InferenceMaps:
        taps, codes, score = self._maps(self.framed(picture))
        return InferenceMaps([*taps], codes, score)

    def _computed(self, framed: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        taps = self.trunk.taps(framed)
        return taps, *self.heads(taps)


def form_of(model: DeepMask) -> CompiledForm:
    """The model's form, of PyTorch's own operations, compiled when the first photo is searched."""
    plain = model.for_inference()
    if plain not in _forms:
        _forms[plain] = CompiledForm(model.for_export())
    return _forms[plain]

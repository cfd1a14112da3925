"""The authors' released models, from files of Torch 7.

:mod:`.torch7` reads a file's modules as plain data. Each part of the model is flattened to its layers
(:mod:`.layers`), which must compute what our model computes at that place (:mod:`.steps`); the tensors are taken in
that order. The layers' padding, strides and crops are compared too, because the tensors do not show them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from ..models import ModelConfig, SharpMask
from ..models.build import without_memory
from ..plain import from_plain
from ..tensor_files import StateDict, check_values
from .converted import Converted, finished
from .layers import Layer, ModuleReader, class_name, describe, fields
from .steps import Step, encoding_steps, mask_steps, refinement_steps, score_steps, trunk_steps
from .torch7 import Array, Instance, Table

TAPS = [8, 6, 5, 3]
"""Modules of the released trunk whose maps refinement reads, counted from 1."""
DEFAULTS: dict[str, float] = {"groups": 1, "threshold": 0, "ceil_mode": 0}
"""Fields that old files do not have."""
NO_WEIGHTS = {
    *("output", "gradInput", "gradWeight", "gradBias", "inps", "buffer", "noise"),
    *("finput", "fgradInput", "addBuffer", "indices"),
}
"""Fields that modules save but that are no weights: outputs, gradients and buffers."""


@dataclass
class Parts:
    """The released model's layers, part by part."""

    trunk: list[Layer]
    mask: list[Layer]
    score: list[Layer]
    refinements: list[list[Layer]]
    """The first mask encoding, then the refinement modules; empty for DeepMask."""


class Released(ModuleReader):
    """The conversion of one file of the authors' code; ``root`` is the object in it."""

    def __init__(self, root: Any, path: Path) -> None:
        super().__init__(str(path))
        self.root, self.limit = root, path.stat().st_size
        self.used: set[int] = set()
        self.state: StateDict = {}

    def convert(self) -> Converted:
        """The model. Raises ``DataError`` naming what does not fit."""
        found = self.root.values.get("model") if isinstance(self.root, Table) else self.root
        name = class_name(found)
        if not isinstance(found, Instance) or name not in ("DeepMask", "SharpMask"):
            raise self.error(f"expected a model of class nn.DeepMask or nn.SharpMask, got {describe(found)}")
        parts = self._parts(found, sharp=name == "SharpMask")
        model = without_memory(self._config(parts, self.field(found, "fSz")), self.name)
        self._take_part(parts.trunk, trunk_steps(model), "trunk")
        self._take_part(parts.mask, mask_steps(model), "mask")
        self._take_part(parts.score, score_steps(model), "score")
        if isinstance(model, SharpMask):
            first, *refinements = parts.refinements
            self._take_part(first, encoding_steps(model), "refs[0]")
            for i, layers in enumerate(refinements):
                self._take_part(layers, refinement_steps(model, i), f"refs[{i + 1}]")
        check_values(self.state, self.name)
        model.load_state_dict(self.state, assign=True)
        return Converted(finished(model), self._unused())

    # The parts and their widths

    def _parts(self, model: Instance, sharp: bool) -> Parts:
        return Parts(
            trunk=self.layers(self.field(model, "trunk"), "trunk"),
            mask=self.layers(self.field(model, "maskBranchDM" if sharp else "maskBranch"), "mask"),
            score=self.layers(self.field(model, "scoreBranch"), "score"),
            refinements=self._refinements(model) if sharp else [],
        )

    def _refinements(self, model: Instance) -> list[list[Layer]]:
        taps = self.field(model, "skpos")
        if not isinstance(taps, Table) or [taps.values.get(i + 1) for i in range(len(TAPS))] != TAPS:
            raise self.error(f"skpos must be {TAPS}, got {describe(taps)}")
        refs = self.field(model, "refs")
        if not isinstance(refs, Table) or set(refs.values) != set(range(len(TAPS) + 1)):
            raise self.error(f"refs must be a table of 0 to {len(TAPS)}, got {describe(refs)}")
        return [self.layers(refs.values[i], f"refs[{i}]") for i in range(len(TAPS) + 1)]

    def _config(self, parts: Parts, side: Any) -> ModelConfig:
        """Our settings of the same widths; ``side``: cells of a window. All layers are compared afterwards."""
        trunk, mask, score = (self.widths(layers) for layers in (parts.trunk, parts.mask, parts.score))
        if len(trunk) < 2 or len(mask) != 1 or len(score) != 2:
            raise self.error(f"expected trunk, mask and score layers, got {trunk}, {mask}, {score}")
        if not isinstance(side, float) or not 1 <= side <= 4096 or not side.is_integer():
            raise self.error(f"fSz must be a whole number from 1 to 4096, got {describe(side)}")
        crop = next((-self.number(layer, "pad_l") for layer in parts.trunk if layer.kind == "crop"), 0)
        options: dict[str, Any] = {}
        if parts.refinements:
            first, *others = (self.widths(layers) for layers in parts.refinements)
            if len(first) != 1 or [len(w) for w in others] != [5, 5, 5, 6]:
                counts = [len(w) for w in (first, *others)]
                raise self.error(f"refs must have 1, 5, 5, 5 and 6 layers with weights, got {counts}")
            # Of a module's convolutions the second has the width of the skip, the fifth that of the next mask encoding.
            options["mask_channels"] = (int(first[0] // side**2), *(w[4] for w in others))
            options["skip_channels"] = tuple(w[1] for w in others)
        options |= {
            "architecture": "sharpmask" if parts.refinements else "deepmask",
            "window": 16 * int(side),
            "context": 32 * int(crop),
            "features": trunk[-2],
            "code": trunk[-1],
            "mask_side": math.isqrt(mask[0]),
            "score_hidden": score[0],
            "refinement": "released",
            "crop_first": True,
        }
        return from_plain(ModelConfig, options, self.name)

    # Taking the tensors

    def _take_part(self, layers: Sequence[Layer], steps: Sequence[Step], part: str) -> None:
        """Take the tensors of ``layers``, which must compute what ``steps`` do."""
        shift: Tensor | None = None
        for i, step in enumerate(steps):
            if i == len(layers):
                raise self.error(f"{part}: expected {step.kind} for {step.name or 'step'} at its end, got no more")
            layer = layers[i]
            if layer.kind != step.kind:
                raise self.error(f"{layer.path}: expected {step.kind}, got {describe(layer.module)}")
            self._check_settings(layer, step)
            if isinstance(step.module, FrozenBatchNorm2d):
                self._take_affine(layer, step.name, step.module, shift)
                shift = None
            elif step.module is not None:
                for key, own in step.module.named_parameters(recurse=False):
                    self._take(layer, key, f"{step.name}.{key}", own)
                shift = self._spare_bias(layer, step.module)
        if len(layers) > len(steps):
            extra = layers[len(steps)]
            raise self.error(f"{extra.path}: expected no more layers, got {describe(extra.module)}")

    def _check_settings(self, layer: Layer, step: Step) -> None:
        """Compare what tensors do not show."""
        pad = step.settings.get("symmetric", 0)
        if layer.pad != pad:
            raise self.error(f"{layer.path}: symmetric padding must be {pad}, got {layer.pad:g}")
        for key, expected in step.settings.items():
            if key != "symmetric" and self.number(layer, key, DEFAULTS.get(key)) != expected:
                raise self.error(f"{layer.path}: {key} must be {expected}, got {self.number(layer, key)}")

    def _spare_bias(self, layer: Layer, conv: nn.Module) -> Tensor | None:
        """The bias of a convolution that has none in our model; the normalisation after it takes it over."""
        if getattr(conv, "bias", None) is not None or fields(layer.module).get("bias") is None:
            return None
        assert isinstance(conv, nn.Conv2d)
        array = self.tensor(layer, "bias")
        if array.values.shape != (conv.out_channels,):
            raise self.error(f"{layer.path}: bias must be ({conv.out_channels},), got {array.values.shape}")
        return self._copy(array, layer, "bias")

    def _take(self, layer: Layer, key: str, name: str, own: Tensor) -> None:
        """Take a weight of the shape of ``own``; older files have convolutions' weights as matrices."""
        array = self.tensor(layer, key)
        shape = tuple(own.shape)
        flat = (shape[0], math.prod(shape[1:])) if len(shape) > 1 else shape
        if array.values.shape not in (shape, flat):
            raise self.error(f"{layer.path}: {key} must be {shape} for {name}, got {array.values.shape}")
        self.state[name] = self._copy(array, layer, key).reshape(shape)

    def _take_affine(self, layer: Layer, name: str, norm: FrozenBatchNorm2d, shift: Tensor | None) -> None:
        """Take a (x + shift) + b as a normalisation of mean 0 and variance 1."""
        width = norm.weight.shape[0]
        values = []
        for key in ("a", "b"):
            array = self.tensor(layer, key)
            if array.values.shape not in ((width,), (1, width, 1, 1)):
                raise self.error(f"{layer.path}: {key} must be ({width},), got {array.values.shape}")
            values.append(self._copy(array, layer, key).flatten())
        a, b = values
        mean, variance = torch.zeros(width), torch.full((width,), 1 - norm.eps)
        own = {"weight": a, "bias": b if shift is None else b + a * shift}
        own |= {"running_mean": mean, "running_var": variance}
        self.state |= {f"{name}.{key}": value for key, value in own.items()}

    def _copy(self, array: Array, layer: Layer, key: str) -> Tensor:
        """The values as fp32. All copies together are never larger than the file."""
        if id(array) in self.used:
            raise self.error(f"{layer.path}: {key} is used twice")
        self.used.add(id(array))
        self.limit -= array.values.nbytes
        if self.limit < 0:
            raise self.error(f"{layer.path}: {key}: the tensors are larger than the file")
        return torch.from_numpy(array.values.astype(np.float32, order="C"))

    def _unused(self) -> list[str]:
        """Places of the weights that the model did not take."""
        found: list[str] = []
        seen: set[int] = set()
        stack: list[tuple[str, Any]] = [("file", self.root)]
        while stack:
            path, value = stack.pop()
            if id(value) in seen or id(value) in self.used or not isinstance(value, Table | Instance | Array):
                continue
            seen.add(id(value))
            if isinstance(value, Array):
                found += [path] if value.values.size and value.name.endswith("Tensor") else []
            elif isinstance(value, Instance):
                stack.append((path, value.data))
            else:
                stack += [(f"{path}.{_key(k)}", v) for k, v in value.values.items() if k not in NO_WEIGHTS]
        return sorted(found)


def _key(key: Any) -> str:
    """A table's key as part of a path."""
    return str(key) if isinstance(key, int) or (isinstance(key, str) and key.isidentifier()) else repr(key)[:80]

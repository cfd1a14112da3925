"""The layers of a released model: its Torch 7 modules, flattened to what they compute, in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import DataError
from .steps import Kind
from .torch7 import Array, Instance, Table

KINDS: dict[str, Kind] = {
    "SpatialConvolution": "conv",
    "SpatialConvolutionMM": "conv",
    "Linear": "linear",
    "SpatialConstDiagonal": "affine",
    "ReLU": "relu",
    "Threshold": "relu",
    "SpatialMaxPooling": "pool",
    "SpatialZeroPadding": "crop",
    "CAddTable": "add",
    "SpatialUpSamplingNearest": "up",
}
"""What modules compute, by class."""
CONTAINERS = {"Sequential", "ConcatTable", "ParallelTable"}
PASSIVE = {"Identity", "Dropout", "View", "Reshape", "Copy", "SpatialReSamplingEx"}
"""Classes without effect on masks at the network's own resolution, or on its weights."""
PADDING = "SpatialSymmetricPadding"


@dataclass
class Layer:
    """One step of the released model's computation."""

    kind: Kind
    path: str
    """Its place in the file."""
    module: Instance
    pad: float = 0
    """Cells of symmetric padding before it."""


class ModuleReader:
    """Reads modules of one file; its errors are ``DataError`` and start with the file's name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def error(self, what: str) -> DataError:
        return DataError(f"{self.name}: {what}")

    def field(self, module: Instance, key: str) -> Any:
        """A field that the module must have."""
        values = fields(module)
        if key not in values:
            raise self.error(f"{describe(module)} has no field {key}")
        return values[key]

    def number(self, layer: Layer, key: str, default: float | None = None) -> float:
        """A field that is a number, or ``default`` where the module does not have it."""
        value = fields(layer.module).get(key, default)
        if not isinstance(value, float | int) or not abs(value) < 2**31:
            raise self.error(f"{layer.path}: {key} must be a number, got {describe(value)}")
        return value

    def tensor(self, layer: Layer, key: str) -> Array:
        """A field that is a tensor with elements."""
        array = self.field(layer.module, key)
        if not isinstance(array, Array) or not array.values.size:
            raise self.error(f"{layer.path}: {key} must be a tensor, got {describe(array)}")
        return array

    def widths(self, layers: Sequence[Layer]) -> list[int]:
        """Output widths of the convolutions and linear layers."""
        found = [self.tensor(layer, "weight") for layer in layers if layer.kind in ("conv", "linear")]
        return [array.values.shape[0] for array in found]

    def layers(self, module: Any, path: str) -> list[Layer]:
        """What a module computes, in order; a padding module becomes part of the layer after it."""
        found: list[Layer] = []
        pad: Layer | None = None
        for place, leaf in self._leaves(module, path, set()):
            name = class_name(leaf)
            if name in PASSIVE:
                continue
            if name == PADDING:
                layer = Layer("crop", place, leaf)
                sides = {self.number(layer, f"pad_{side}") for side in "lrtb"}
                if pad or len(sides) != 1:
                    raise self.error(f"{place}: expected one padding, the same on all sides")
                pad = layer
                continue
            if name not in KINDS:
                raise self.error(f"{place}: a module of class {describe(leaf)} is not known here")
            layer = Layer(KINDS[name], place, leaf)
            if pad:
                layer.pad, pad = self.number(pad, "pad_l"), None
            found.append(layer)
        return found

    def _leaves(self, module: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Instance]]:
        """The modules without parts, in order, with their places.

        A container that comes twice is refused, because a short file could otherwise hold billions of modules.
        """
        if not isinstance(module, Instance):
            raise self.error(f"{path}: expected a module, got {describe(module)}")
        if class_name(module) not in CONTAINERS:
            yield path, module
            return
        if id(module) in seen:
            raise self.error(f"{path}: this module occurs twice")
        seen.add(id(module))
        modules = self.field(module, "modules")
        if not isinstance(modules, Table):
            raise self.error(f"{path}: modules must be a table, got {describe(modules)}")
        for i in range(1, len(modules.values) + 1):
            yield from self._leaves(modules.values.get(i), f"{path}.{i}", seen)


def fields(module: Instance) -> dict[Any, Any]:
    """A module's fields by name."""
    return module.data.values if isinstance(module.data, Table) else {}


def class_name(value: Any) -> str:
    """``nn.Linear`` or ``cudnn.Linear`` as Linear; an empty string for what is no instance of a class."""
    return value.name.rpartition(".")[2] if isinstance(value, Instance) else ""


def describe(value: Any) -> str:
    """A value, short enough for an error message of one line."""
    if isinstance(value, Instance | Array):
        return repr(value.name)
    return f"{type(value).__name__} {str(value)[:40]!r}" if isinstance(value, str | float) else type(value).__name__

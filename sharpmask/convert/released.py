"""The authors' released models, and those of the public PyTorch port, as models of this package.

The authors' files hold modules of Torch 7, read as plain data by :mod:`.torch7`. A part of the model is
flattened to what it computes, layer by layer, and compared with what our model computes at that place; the
tensors come along in that order. The layers' padding, strides and crops are compared too, since no tensor would
show them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from ..errors import DataError
from ..models import DeepMask, ModelConfig, SearchConfig, SharpMask, from_config
from ..models.deepmask import MEAN, STD
from ..models.trunk import ResNetTrunk
from ..models.weights import StateDict
from . import torch7
from .torch7 import Array, Instance, Table

Kind = Literal["conv", "linear", "affine", "relu", "pool", "crop", "add", "up"]
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
CONTAINERS = {"Sequential", "ConcatTable", "ParallelTable"}
PASSIVE = {"Identity", "Dropout", "View", "Reshape", "Copy", "SpatialReSamplingEx"}
"""Without effect on masks at the network's own resolution, or on its weights."""
PASSING = {
    *("output", "gradInput", "gradWeight", "gradBias", "inps", "buffer", "noise"),
    *("finput", "fgradInput", "addBuffer", "indices"),
}
"""Fields that modules save but that are no weights: outputs, gradients and buffers."""
PADDING = "SpatialSymmetricPadding"
TAPS = [8, 6, 5, 3]
"""Where the released trunk is read, counted from 1."""


@dataclass
class Converted:
    """A converted model, and what of the file is not in it."""

    model: DeepMask
    unused: list[str] = field(default_factory=list)
    """Tensors that are not part of the model, by their place in the file; buffers and gradients are left out."""


@dataclass
class Layer:
    """One step of the released model's computation."""

    kind: Kind
    path: str
    module: Instance
    pad: float = 0
    """Cells of symmetric padding before it."""


def convert(path: str | Path) -> Converted:
    """The model in a file: a released DeepMask or SharpMask (Torch 7), or a state_dict of the PyTorch port of
    DeepMask (read without running pickled code).

    Its ``search`` has the released geometry. Raises ``DataError`` naming what does not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"weights: no file {path}")
    with path.open("rb") as file:
        start = file.read(4)
    # A zip archive or a pickle is PyTorch's; a Torch 7 file starts with a small integer.
    if start[:2] in (b"PK", b"\x80\x02"):
        return from_port(read_port(path), str(path))
    return Released(torch7.load(path), path).convert()


class Released:
    """The walk through one file of the authors' code."""

    def __init__(self, root: Any, path: Path) -> None:
        self.name, self.limit = str(path), path.stat().st_size
        self.root = root
        self.used: set[int] = set()
        self.state: StateDict = {}

    def error(self, what: str) -> DataError:
        return DataError(f"{self.name}: {what}")

    def convert(self) -> Converted:
        found = self.root.values.get("model") if isinstance(self.root, Table) else self.root
        name = class_name(found)
        if not isinstance(found, Instance) or name not in ("DeepMask", "SharpMask"):
            raise self.error(f"expected a model of class nn.DeepMask or nn.SharpMask, got {describe(found)}")
        sharp = name == "SharpMask"
        trunk = self.layers(self.field(found, "trunk"), "trunk")
        mask = self.layers(self.field(found, "maskBranchDM" if sharp else "maskBranch"), "mask")
        score = self.layers(self.field(found, "scoreBranch"), "score")
        refs = self.refinement(found) if sharp else []
        config = self.config(trunk, mask, score, refs, self.field(found, "fSz"))
        try:
            with torch.device("meta"):
                model = from_config(config)
        except (ValueError, RuntimeError) as error:
            raise self.error(str(error).splitlines()[0]) from error
        self.walk(trunk, trunk_steps(model), "trunk")
        self.walk(mask, [Step("linear", "mask", model.mask)], "mask")
        self.walk(score, head_steps(model), "score")
        if isinstance(model, SharpMask):
            self.walk(refs[0], [Step("linear", "encoding", model.encoding)], "refs[0]")
            for i, layers in enumerate(refs[1:]):
                self.walk(layers, refinement_steps(model, i), f"refs[{i + 1}]")
        model.load_state_dict(self.state, assign=True)
        return Converted(finished(model), self.unused())

    def refinement(self, model: Instance) -> list[list[Layer]]:
        taps = self.field(model, "skpos")
        if not isinstance(taps, Table) or [taps.values.get(i + 1) for i in range(len(TAPS))] != TAPS:
            raise self.error(f"expected skpos {TAPS}, got {describe(taps)}")
        refs = self.field(model, "refs")
        if not isinstance(refs, Table) or set(refs.values) != set(range(len(TAPS) + 1)):
            raise self.error(f"expected refs to be a table of 0 to {len(TAPS)}, got {describe(refs)}")
        return [self.layers(refs.values[i], f"refs[{i}]") for i in range(len(TAPS) + 1)]

    def config(
        self, trunk: list[Layer], mask: list[Layer], score: list[Layer], refs: list[list[Layer]], side: Any
    ) -> ModelConfig:
        """Our settings of the same widths; the walk then compares everything."""
        widths = {name: self.widths(layers) for name, layers in (("trunk", trunk), ("mask", mask), ("score", score))}
        if len(widths["trunk"]) < 2 or len(widths["mask"]) != 1 or len(widths["score"]) != 2:
            raise self.error(f"expected trunk, mask and score layers, got {', '.join(map(str, widths.values()))}")
        if not isinstance(side, float) or not 1 <= side <= 4096 or not side.is_integer():
            raise self.error(f"expected fSz to be a whole number, got {describe(side)}")
        crop = next((-self.number(layer, "pad_l") for layer in trunk if layer.kind == "crop"), 0)
        options: dict[str, Any] = {}
        if refs:
            inner = [self.widths(layers) for layers in refs]
            if len(inner[0]) != 1 or [len(w) for w in inner[1:]] != [5, 5, 5, 6]:
                raise self.error(f"refs: expected 1, 5, 5, 5 and 6 layers with weights, got {[len(w) for w in inner]}")
            options["mask_channels"] = (int(inner[0][0] // side**2), *(w[4] for w in inner[1:]))
            options["skip_channels"] = tuple(w[1] for w in inner[1:])
        return ModelConfig(
            "sharpmask" if refs else "deepmask",
            "resnet50",
            window=16 * int(side),
            context=32 * int(crop),
            features=widths["trunk"][-2],
            code=widths["trunk"][-1],
            mask_side=math.isqrt(widths["mask"][0]),
            score_hidden=widths["score"][0],
            refinement="released",
            crop_first=True,
            **options,
        )

    def widths(self, layers: Sequence[Layer]) -> list[int]:
        """Output widths of the convolutions and linear layers."""
        found = [self.tensor(layer, "weight") for layer in layers if layer.kind in ("conv", "linear")]
        return [array.values.shape[0] for array in found]

    # Reading modules

    def field(self, module: Instance, key: str) -> Any:
        values = module.data.values if isinstance(module.data, Table) else {}
        if key not in values:
            raise self.error(f"{describe(module)} has no field {key}")
        return values[key]

    def number(self, layer: Layer, key: str, default: float | None = None) -> float:
        values = layer.module.data.values if isinstance(layer.module.data, Table) else {}
        value = values.get(key, default)
        if not isinstance(value, float | int) or not abs(value) < 2**31:
            raise self.error(f"{layer.path}: expected {key} to be a number, got {describe(value)}")
        return value

    def tensor(self, layer: Layer, key: str) -> Array:
        array = self.field(layer.module, key)
        if not isinstance(array, Array) or not array.values.size:
            raise self.error(f"{layer.path}: expected {key} to be a tensor, got {describe(array)}")
        return array

    def layers(self, module: Any, path: str) -> list[Layer]:
        """What a module computes, in order; a padding module goes with the convolution after it."""
        found: list[Layer] = []
        pad: Layer | None = None
        for place, leaf in self.leaves(module, path, set()):
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

    def leaves(self, module: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Instance]]:
        """The modules without parts. No container comes twice, or a short file could hold billions of them."""
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
            raise self.error(f"{path}: expected modules to be a table, got {describe(modules)}")
        for i in range(1, len(modules.values) + 1):
            yield from self.leaves(modules.values.get(i), f"{path}.{i}", seen)

    # Comparing them with ours

    def walk(self, layers: Sequence[Layer], steps: Sequence[Step], part: str) -> None:
        """Take the tensors of ``layers``, which must compute what ``steps`` do."""
        shift: Tensor | None = None
        for i, step in enumerate(steps):
            if i == len(layers):
                raise self.error(f"{part}: expected {step.kind} for {step.name or 'step'} at its end, got no more")
            layer = layers[i]
            if layer.kind != step.kind:
                raise self.error(f"{layer.path}: expected {step.kind}, got {describe(layer.module)}")
            self.check(layer, step)
            if isinstance(step.module, FrozenBatchNorm2d):
                self.take_affine(layer, step.name, step.module, shift)
                shift = None
            elif step.module is not None:
                for key, own in step.module.named_parameters(recurse=False):
                    self.take(layer, key, f"{step.name}.{key}", own)
                shift = self.spare_bias(layer, step.module)
        if len(layers) > len(steps):
            extra = layers[len(steps)]
            raise self.error(f"{extra.path}: expected no more layers, got {describe(extra.module)}")

    def spare_bias(self, layer: Layer, conv: nn.Module) -> Tensor | None:
        """The bias of a convolution that has none in our model: the normalisation after it takes it up."""
        values = layer.module.data.values if isinstance(layer.module.data, Table) else {}
        if getattr(conv, "bias", None) is not None or values.get("bias") is None:
            return None
        assert isinstance(conv, nn.Conv2d)
        array = self.tensor(layer, "bias")
        if array.values.shape != (conv.out_channels,):
            raise self.error(f"{layer.path}: expected bias of ({conv.out_channels},), got {array.values.shape}")
        return self.copy(array, layer, "bias")

    def check(self, layer: Layer, step: Step) -> None:
        """What tensors do not show."""
        pad = step.settings.get("symmetric", 0)
        if layer.pad != pad:
            raise self.error(f"{layer.path}: expected symmetric padding of {pad}, got {layer.pad:g}")
        for key, expected in step.settings.items():
            if key != "symmetric" and self.number(layer, key, DEFAULTS.get(key)) != expected:
                raise self.error(f"{layer.path}: expected {key} {expected}, got {self.number(layer, key)}")

    def take(self, layer: Layer, key: str, name: str, own: Tensor) -> None:
        array = self.tensor(layer, key)
        shape = tuple(own.shape)
        flat = (shape[0], math.prod(shape[1:])) if len(shape) > 1 else shape
        if array.values.shape not in (shape, flat):
            raise self.error(f"{layer.path}: expected {key} of {shape} for {name}, got {array.values.shape}")
        self.state[name] = self.copy(array, layer, key).reshape(shape)

    def take_affine(self, layer: Layer, name: str, norm: FrozenBatchNorm2d, shift: Tensor | None) -> None:
        """a (x + shift) + b as a normalisation of mean 0 and variance 1."""
        width = norm.weight.shape[0]
        values = []
        for key in ("a", "b"):
            array = self.tensor(layer, key)
            if array.values.shape not in ((width,), (1, width, 1, 1)):
                raise self.error(f"{layer.path}: expected {key} of ({width},), got {array.values.shape}")
            values.append(self.copy(array, layer, key).flatten())
        a, b = values
        mean, variance = torch.zeros(width), torch.full((width,), 1 - norm.eps)
        own = {"weight": a, "bias": b if shift is None else b + a * shift}
        own |= {"running_mean": mean, "running_var": variance}
        self.state |= {f"{name}.{key}": value for key, value in own.items()}

    def copy(self, array: Array, layer: Layer, key: str) -> Tensor:
        """The values as fp32. All copies together are never more than the file."""
        if id(array) in self.used:
            raise self.error(f"{layer.path}: {key} is used twice")
        self.used.add(id(array))
        self.limit -= array.values.nbytes
        if self.limit < 0:
            raise self.error(f"{layer.path}: {key}: the tensors are larger than the file")
        return torch.from_numpy(array.values.astype(np.float32, order="C"))

    def unused(self) -> list[str]:
        """Weights that the model did not take, by place; what modules save beside their weights is left out."""
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
                stack += [(f"{path}.{place(k)}", v) for k, v in value.values.items() if k not in PASSING]
        return sorted(found)


@dataclass
class Step:
    """What our model computes at one place: its module, named as in the state_dict."""

    kind: Kind
    name: str = ""
    module: nn.Module | None = None
    settings: dict[str, float] = field(default_factory=dict)
    """Fields that the released module must have, and its "symmetric" padding."""


RELU = Step("relu", settings={"threshold": 0})
DEFAULTS: dict[str, float] = {"groups": 1, "threshold": 0, "ceil_mode": 0}
"""Fields that old files do not have."""


def conv_step(name: str, conv: nn.Module) -> Step:
    """A convolution: symmetric padding by half its side comes before it, its own is 0."""
    assert isinstance(conv, nn.Conv2d)
    side, stride = conv.kernel_size[0], conv.stride[0]
    settings = {"kW": side, "kH": side, "dW": stride, "dH": stride, "padW": 0, "padH": 0, "groups": 1}
    return Step("conv", name, conv, {**settings, "symmetric": side // 2})


def trunk_steps(model: DeepMask) -> list[Step]:
    """The trunk of ResNet-50 to stride 16, the crop to the window, its code."""
    trunk = model.trunk
    assert isinstance(trunk, ResNetTrunk)

    def normed(name: str, norm: str) -> list[Step]:
        return [conv_step(name, trunk.get_submodule(name[6:])), Step("affine", norm, trunk.get_submodule(norm[6:]))]

    pool = Step("pool", settings={"kW": 3, "kH": 3, "dW": 2, "dH": 2, "padW": 1, "padH": 1, "ceil_mode": 0})
    steps = [*normed("trunk.conv1", "trunk.bn1"), RELU, pool]
    for stage in ("layer1", "layer2", "layer3"):
        for i, block in enumerate(trunk.get_submodule(stage).children()):
            at = f"trunk.{stage}.{i}"
            for j in (1, 2, 3):
                steps += [*normed(f"{at}.conv{j}", f"{at}.bn{j}"), *([RELU] if j < 3 else [])]
            if getattr(block, "downsample", None) is not None:
                steps += normed(f"{at}.downsample.0", f"{at}.downsample.1")
            steps += [Step("add"), RELU]
    crop = [crop_step(model.context // 32)] if model.context else []
    encode = Step("linear", "encode", model.encode)
    return [*steps, *crop, conv_step("reduce", model.reduce), RELU, encode]


def crop_step(cells: int) -> Step:
    return Step("crop", settings={f"pad_{side}": -cells for side in "lrtb"})


def head_steps(model: DeepMask) -> list[Step]:
    score = model.score
    return [Step("linear", "score.1", score[1]), RELU, Step("linear", "score.4", score[4])]


def refinement_steps(model: SharpMask, i: int) -> list[Step]:
    """One refinement module: the crop of its map, three horizontal and two vertical convolutions, their sum."""
    at = f"refinements.{i}"
    convs = [conv_step(f"{at}.{part}", model.get_submodule(f"{at}.{part}")) for part in ("h.0", "h.2", "h.4")]
    vertical = [conv_step(f"{at}.{part}", model.get_submodule(f"{at}.{part}")) for part in ("v.0", "v.1")]
    crop = [crop_step(model.context // 32 << i)] if i and model.context else []
    steps = [*crop, convs[0], RELU, convs[1], RELU, convs[2], vertical[0], RELU, vertical[1]]
    steps += [Step("add"), RELU, Step("up", settings={"scale_factor": 2})]
    return [*steps, conv_step("head", model.head)] if i == len(model.refinements) - 1 else steps


def class_name(value: Any) -> str:
    """``nn.Linear`` or ``cudnn.Linear`` as Linear."""
    return value.name.rpartition(".")[2] if isinstance(value, Instance) else ""


def describe(value: Any) -> str:
    """Short enough for an error's one line."""
    if isinstance(value, Instance | Array):
        return repr(value.name)
    return f"{type(value).__name__} {str(value)[:40]!r}" if isinstance(value, str | float) else type(value).__name__


def finished(model: DeepMask) -> DeepMask:
    """With what its state_dict does not hold, and the search of the authors' code."""
    model.mean, model.std = (torch.tensor(value).view(3, 1, 1) for value in (MEAN, STD))
    model.search = replace(SearchConfig.for_window(model.window), geometry="released")
    return model.eval()


def place(key: Any) -> str:
    """A table's key as part of a path."""
    return str(key) if isinstance(key, int) or (isinstance(key, str) and key.isidentifier()) else repr(key)[:80]


def read_port(path: Path) -> StateDict:
    """The tensors by name of a checkpoint of the port, plain or with what training keeps beside them."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many types on hostile or truncated files
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{path}: cannot be read as PyTorch weights: {reason}") from error
    state = saved.get("state_dict", saved) if isinstance(saved, dict) else saved
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) and isinstance(k, str) for k, v in state.items()):
        raise DataError(f"{path}: expected tensors by name, got {type(state).__name__}")
    if sum(tensor.numel() for tensor in state.values()) > path.stat().st_size:
        raise DataError(f"{path}: the tensors are larger than the file")
    return {name.removeprefix("module."): value for name, value in state.items()}


PORT_NAMES = {
    r"trunk\.0\.0(\.1)?\.": "trunk.conv1.",
    r"trunk\.0\.1\.": "trunk.bn1.",
    r"trunk\.0\.4\.": "trunk.layer1.",
    r"trunk\.0\.5\.": "trunk.layer2.",
    r"trunk\.0\.6\.": "trunk.layer3.",
    r"trunk\.1\.0\.": "reduce.",
    r"trunk\.1\.2\.": "encode.",
    r"maskBranch\.0(\.0)?\.": "mask.",
    r"scoreBranch\.": "score.",
}
"""What names start with in the port, and here."""


def port_name(name: str) -> str:
    """The port's padding modules make conv2 a sequence, whose second part is the convolution."""
    name = name.replace(".conv2.1.", ".conv2.")
    for pattern, own in PORT_NAMES.items():
        if re.match(pattern, name):
            return re.sub(pattern, own, name, count=1)
    return name


def from_port(state: StateDict, source: str) -> Converted:
    """DeepMask from a state_dict of the port, whose 3x3 convolutions in the trunk pad by reflection."""
    named = {port_name(k): v for k, v in state.items()}
    widths = {}
    for key, dimensions in (("reduce.weight", 4), ("encode.weight", 4), ("mask.weight", 4), ("score.1.weight", 4)):
        if key not in named or named[key].ndim != dimensions:
            raise DataError(f"{source}: expected a state_dict of the PyTorch port of DeepMask; {key} is missing")
        widths[key.removesuffix(".weight")] = named[key].shape
    config = ModelConfig(
        "deepmask",
        "resnet50",
        window=16 * widths["encode"][2],
        features=widths["reduce"][0],
        code=widths["encode"][0],
        mask_side=math.isqrt(widths["mask"][0]),
        score_hidden=widths["score.1"][0],
        trunk_padding="reflect",
    )
    try:
        with torch.device("meta"):
            model = from_config(config)
    except (ValueError, RuntimeError) as error:
        raise DataError(f"{source}: {str(error).splitlines()[0]}") from error
    own = model.state_dict()
    taken = {}
    for name, tensor in own.items():
        got = named.pop(name, None)
        # Linear layers are 1x1 and f x f convolutions there.
        fits = got is not None and tensor.shape in (got.shape, got.flatten(1).shape if got.ndim == 4 else got.shape)
        if got is None or not fits:
            shape = "none" if got is None else tuple(got.shape)
            raise DataError(f"{source}: expected {name} of {tuple(tensor.shape)}, got {shape}")
        taken[name] = got.float().reshape(tensor.shape)
    model.load_state_dict(taken, assign=True)
    return Converted(finished(model), sorted(k for k in named if not k.endswith("num_batches_tracked")))

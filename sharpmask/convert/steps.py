"""What a model of this package computes, step by step, for comparison with the layers of a released one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from ..models import DeepMask, SharpMask
from ..models.trunk import ResNetTrunk

Kind = Literal["conv", "linear", "affine", "relu", "pool", "crop", "add", "up"]


@dataclass
class Step:
    """One step of the computation: the module that does it, named as in the state_dict."""

    kind: Kind
    name: str = ""
    module: nn.Module | None = None
    settings: dict[str, float] = field(default_factory=dict)
    """Fields that the released module must have; "symmetric" stands for the padding before it."""


RELU = Step("relu", settings={"threshold": 0})


def conv_step(name: str, conv: nn.Module) -> Step:
    """A convolution. Half its side of symmetric padding comes before it; its own padding is 0."""
    assert isinstance(conv, nn.Conv2d)
    side, stride = conv.kernel_size[0], conv.stride[0]
    settings = {"kW": side, "kH": side, "dW": stride, "dH": stride, "padW": 0, "padH": 0, "groups": 1}
    return Step("conv", name, conv, {**settings, "symmetric": side // 2})


def crop_step(cells: int) -> Step:
    """A crop of ``cells`` cells on every side."""
    return Step("crop", settings={f"pad_{side}": -cells for side in "lrtb"})


def trunk_steps(model: DeepMask) -> list[Step]:
    """The trunk of ResNet-50 to stride 16, the crop to the window, its code."""
    trunk = model.trunk
    assert isinstance(trunk, ResNetTrunk)

    def normed(conv: str, norm: str) -> list[Step]:
        return [conv_step(conv, model.get_submodule(conv)), Step("affine", norm, model.get_submodule(norm))]

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
    return [*steps, *crop, conv_step("reduce", model.reduce), RELU, Step("linear", "encode", model.encode)]


def mask_steps(model: DeepMask) -> list[Step]:
    """The coarse mask's head."""
    return [Step("linear", "mask", model.mask)]


def score_steps(model: DeepMask) -> list[Step]:
    """The score's head."""
    score = model.score
    return [Step("linear", "score.1", score[1]), RELU, Step("linear", "score.4", score[4])]


def encoding_steps(model: SharpMask) -> list[Step]:
    """The linear layer of the first mask encoding."""
    return [Step("linear", "encoding", model.encoding)]


def refinement_steps(model: SharpMask, i: int) -> list[Step]:
    """One refinement module: the crop of its map, three horizontal and two vertical convolutions, their sum."""

    def conv(part: str) -> Step:
        name = f"refinements.{i}.{part}"
        return conv_step(name, model.get_submodule(name))

    crop = [crop_step(model.context // 32 << i)] if i and model.context else []
    steps = [*crop, conv("h.0"), RELU, conv("h.2"), RELU, conv("h.4"), conv("v.0"), RELU, conv("v.1")]
    steps += [Step("add"), RELU, Step("up", settings={"scale_factor": 2})]
    return [*steps, conv_step("head", model.head)] if i == len(model.refinements) - 1 else steps

"""The form in which a model searches full images: the same maps, by fewer and faster operations.

Frozen normalisation, the photo's too, is folded into convolutions. Weights lie as PyTorch's convolutions are fastest.
Convolutions, sums and ReLUs of ResNets run in one pass over memory; blocks of mobile trunks are one op each.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.nn.utils.parametrize import is_parametrized
from torchvision.ops import FrozenBatchNorm2d

from sharpmask_kernels import Windows, gather_windows, hooks, inverted_residual

from ..geometry import GREY
from .fourier import convolution
from .memory import release_freed
from .packed import PackedConvolution
from .trunk import EfficientNetLiteTrunk, InvertedResidual, ResNetTrunk, Trunk

Border = tuple[int, int]
"""Pixels before the first and after the last row and column."""


Tap: TypeAlias = Tensor | Callable[[], Tensor]
"""A trunk map, or what computes it when it is wanted."""


def made(tap: Tap) -> Tensor:
    return tap if isinstance(tap, Tensor) else tap()


class Halves(NamedTuple):
    """A trunk in two, whose finest map would take hundreds of megabytes if it were kept while others are computed."""

    finest: Callable[[Tensor], Tensor]
    """The map of stride 2."""
    others: Callable[[Tensor], list[Tensor]]
    """The maps of strides 16, 8 and 4, of the picture too."""


class InferenceTrunk(NamedTuple):
    """A trunk for pictures in [0, 1] that are not normalised and have ``border`` more pixels of ``value`` around."""

    border: Border
    value: Tensor
    """(3, 1, 1)"""
    taps: Callable[[Tensor], list[Tensor]]
    halves: Halves | None = None
    """The same for large pictures, where it has hundreds of channels at high resolution."""


def channels_last(x: Tensor) -> Tensor:
    return x.detach().contiguous(memory_format=torch.channels_last)


KNOWN = ("torch.nn.modules.", "torchvision.", "sharpmask.")
"""Where the classes of modules are defined whose tensors may be read."""


def is_plain(net: nn.Module) -> bool:
    """Whether its tensors alone say what ``net`` computes: no hooks (pruning), parametrizations or wrappers (LoRA)."""
    if not all(type(module).__module__.startswith(KNOWN) for module in net.modules()):
        return False
    return not hooks.anywhere() and not any(hooks.customized(m) or is_parametrized(m) for m in net.modules())


def recompute_weights(net: nn.Module) -> None:
    """Recompute weights that hooks of pruning or weight normalisation recompute in calls: ops read them without one."""
    for module in net.modules():
        for hook in module._forward_pre_hooks.values():
            if type(hook).__module__.startswith("torch.nn.utils."):
                with torch.inference_mode(False):  # training goes on with these tensors
                    hook(module, ())


def inference_trunk(trunk: Trunk, mean: Tensor, std: Tensor, *, public: bool = False) -> InferenceTrunk:
    """The fast form of ``trunk``, which takes images normalised by ``mean`` and ``std`` (3, 1, 1).

    ``public``: by public ops of PyTorch alone.
    """
    if not is_plain(trunk):
        return InferenceTrunk((0, 0), mean, lambda image: trunk((image - mean) / std))
    if isinstance(trunk, EfficientNetLiteTrunk):
        return _mobile(trunk, mean, std)
    if isinstance(trunk, ResNetTrunk):
        return _residual(trunk, mean, std, public)
    plain = copy.deepcopy(trunk).requires_grad_(False).to(memory_format=torch.channels_last)
    return InferenceTrunk((0, 0), mean, lambda image: plain((image - mean) / std))


def _normalised(weight: Tensor, bias: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution of (x - mean) / std, as one of x."""
    scaled = weight.double() / std.double()
    shifted = bias.double() - (scaled * mean.double()).sum((1, 2, 3))
    return channels_last(scaled.to(weight.dtype)), shifted.to(bias.dtype)


def _mobile(trunk: EfficientNetLiteTrunk, mean: Tensor, std: Tensor) -> InferenceTrunk:
    # Padding with zeros after normalisation is padding with the mean before.
    stem = trunk.stem
    weight, bias = _normalised(stem.weight.detach(), cast(Tensor, stem.bias).detach(), mean, std)
    groups = [[_mobile_block(block) for block in cast(Iterable[InvertedResidual], group)] for group in trunk.groups]

    def taps(image: Tensor) -> list[Tensor]:
        x, maps = F.relu6(F.conv2d(image, weight, bias, stem.stride), inplace=True), []
        for group in groups:
            for block in group:
                x = block(x)
            maps.append(x)
        return [maps[4], *maps[2::-1]]

    return InferenceTrunk((stem.border[0], stem.border[1]), mean, taps)


def _mobile_block(block: InvertedResidual) -> Callable[[Tensor], Tensor]:
    def parameters(conv: nn.Conv2d) -> tuple[Tensor, Tensor | None]:
        return conv.weight.detach(), None if conv.bias is None else conv.bias.detach()

    expand = parameters(block.expand) if isinstance(block.expand, nn.Conv2d) else None
    depthwise, project, stride = parameters(block.depthwise), parameters(block.project), block.depthwise.stride[0]
    return lambda x: inverted_residual(x, expand, depthwise, project, stride=stride, residual=block.residual)


def _residual(trunk: ResNetTrunk, mean: Tensor, std: Tensor, public: bool) -> InferenceTrunk:
    net = copy.deepcopy(trunk).eval().requires_grad_(False)
    fold_batch_norms(net)
    weight, bias = _normalised(net.conv1.weight, cast(Tensor, net.conv1.bias), mean, std)
    net.conv1.weight, net.conv1.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)
    stem, pool = PackedConvolution(net.conv1, public=public), net.maxpool
    layers = [[_residual_block(block, public) for block in layer] for layer in (net.layer1, net.layer2, net.layer3)]

    def finest(image: Tensor) -> Tensor:
        return stem(image, relu=True)

    def above(half: Tensor) -> list[Tensor]:
        x, maps = pool(half), list[Tensor]()
        del half
        for layer in layers:
            for block in layer:
                x = block(x)
            maps.append(x)
        return maps[::-1]

    def taps(image: Tensor) -> list[Tensor]:
        half = finest(image)
        return [*above(half), half]

    # A border of grey that is mirrored is a wider border of grey.
    halves = Halves(finest, lambda image: above(finest(image)))
    return InferenceTrunk((3, 3), torch.full_like(mean, GREY), taps, halves)


def _residual_block(block: nn.Module, public: bool) -> Callable[[Tensor], Tensor]:
    """A block of a ResNet, which may write its output over its input."""
    children = dict(block.named_children())
    convs = [cast(nn.Conv2d, children[name]) for name in ("conv1", "conv2", "conv3") if name in children]
    *first, last = (PackedConvolution(conv, public=public) for conv in convs)
    down = cast(nn.Sequential | None, block.downsample)
    short = None if down is None else PackedConvolution(cast(nn.Conv2d, down[0]), public=public)

    def run(x: Tensor) -> Tensor:
        inner = x
        for conv in first:
            inner = conv.padded(inner)
            inner = conv(inner, relu=True)
        inner = last.padded(inner)
        # Later than it could be, so that fewer large maps are alive at once.
        return last.add_relu(inner, x if short is None else short(x, relu=False))

    return run


def fold_batch_norms(net: nn.Module) -> None:
    """Fold every frozen normalisation of ``net`` into the convolution that is registered before it."""
    for module in list(net.modules()):
        before: nn.Conv2d | None = None
        for name, child in list(module.named_children()):
            if isinstance(child, FrozenBatchNorm2d) and before is not None:
                statistics = (child.running_mean, child.running_var, child.eps, child.weight, child.bias)
                before.weight, before.bias = fuse_conv_bn_weights(before.weight, before.bias, *statistics)
                setattr(module, name, nn.Identity())
            before = child if isinstance(child, nn.Conv2d) else None


class InferenceMaps(NamedTuple):
    """What the windows of one picture share."""

    taps: list[Tap]
    """Trunk maps at strides 16, 8, 4, 2; of a large picture the last may still have to be computed."""
    codes: Tensor
    """What :meth:`InferenceForm.codes` reads."""
    score: Tensor
    """(1, 1, rows, cols): the objectness logit of every window."""


class Heads:
    """Reduction, code and score of a DeepMask in their convolutional form.

    Between the code and the score's hidden layer is no ReLU, so both are one convolution. Where that is narrower than
    the code, only the best windows' codes are computed, from ``features``.
    """

    def __init__(
        self, reduce: nn.Conv2d, encode: nn.Linear, score: nn.Sequential, cells: int, *, public: bool = False
    ) -> None:
        self.cells = cells
        self.reduce = PackedConvolution(reduce, public=public)
        self.encode = encode.weight.detach(), encode.bias.detach()
        hidden, last = (layer for layer in score if isinstance(layer, nn.Linear))
        self.last = last.weight.detach()[:, :, None, None], last.bias.detach()
        self.composed = hidden.out_features < encode.out_features
        weight, bias = self.encode
        if self.composed:
            outer = hidden.weight.detach().double()
            weight, bias = (outer @ weight.double()).to(weight.dtype), outer @ bias.double() + hidden.bias.double()
            bias = bias.detach().to(weight.dtype)
        else:
            self.hidden = hidden.weight.detach()[:, :, None, None], hidden.bias.detach()
        self.window = convolution(weight.unflatten(1, (-1, cells, cells)), bias, public=public)

    def __call__(self, taps: list[Tensor]) -> tuple[Tensor, Tensor]:
        features = self.reduce(taps[0], relu=True)
        x = self.window(features)
        hidden = F.relu(x) if self.composed else F.relu(F.conv2d(x, *self.hidden), inplace=True)
        return features if self.composed else x, F.conv2d(hidden, *self.last)

    def codes(self, codes: Sequence[Tensor], windows: Windows) -> Tensor:
        if self.composed:
            return F.linear(gather_windows(codes, windows, self.cells).flatten(1), *self.encode)
        return gather_windows(codes, windows, 1).flatten(1)


class PlainHeads:
    """Heads in another form: ``compute`` makes codes and scores of trunk maps."""

    def __init__(self, compute: Callable[[list[Tensor]], tuple[Tensor, Tensor]]) -> None:
        self.compute = compute

    def __call__(self, taps: list[Tensor]) -> tuple[Tensor, Tensor]:
        return self.compute(taps)

    def codes(self, codes: Sequence[Tensor], windows: Windows) -> Tensor:
        return gather_windows(codes, windows, 1).flatten(1)


LARGE = 250_000
"""Pixels of a picture from which on a trunk runs in two halves, and freed memory is given back before and after it.

Its maps take hundreds of megabytes; what is left of smaller ones would take a quarter more. Elsewhere this would not
pay: memory that the system must hand out again costs the shipped model a fifth of a photo's time.
"""


class InferenceForm:
    """The bottom-up pass of a model over whole pictures. Its tensors are copies: make it anew when the model changes.

    ``trunk``: the model's. ``pad``: grey pixels around a picture. ``heads``: from trunk maps to codes and scores.
    """

    def __init__(self, trunk: InferenceTrunk, pad: int, heads: Heads | PlainHeads) -> None:
        self.trunk, self.pad, self.heads = trunk, pad, heads

    def __call__(self, picture: Tensor) -> InferenceMaps:
        """picture (1, 3, h, w) in [0, 1], not padded."""
        halves = self.trunk.halves
        if halves is None or picture.device.type != "cpu" or picture[0, 0].numel() < LARGE:
            taps = self.trunk.taps(self.framed(picture))
            return InferenceMaps([*taps], *self.heads(taps))
        release_freed()
        taps = halves.others(self.framed(picture))
        release_freed()
        return InferenceMaps([*taps, lambda: halves.finest(self.framed(picture))], *self.heads(taps))

    def framed(self, picture: Tensor) -> Tensor:
        """The picture with grey and the trunk's border around, channels_last, in the model's dtype."""
        (before, after), (height, width) = self.trunk.border, picture.shape[2:]
        sizes = (length + 2 * self.pad + before + after for length in (height, width))
        framed = self.trunk.value.new_empty((1, 3, *sizes)).contiguous(memory_format=torch.channels_last)
        framed[:] = self.trunk.value
        inner = framed[:, :, before:, before:][:, :, : height + 2 * self.pad, : width + 2 * self.pad]
        inner.fill_(GREY)
        inner[:, :, self.pad :, self.pad :][:, :, :height, :width] = picture
        return framed

    def codes(self, codes: Sequence[Tensor], windows: Windows) -> Tensor:
        """Codes (N, code) of windows; ``codes`` by scale as in :class:`InferenceMaps`."""
        return self.heads.codes(codes, windows)

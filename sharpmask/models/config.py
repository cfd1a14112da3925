"""Models by name and configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor, nn

from ..errors import DataError
from .deepmask import DeepMask, OriginalDeepMask
from .sharpmask import SharpMask
from .trunk import ResNetTrunk, build_trunk, read_state_dict

Architecture = Literal["deepmask", "sharpmask", "deepmask-original"]
Geometry = Literal["centres", "released", "released-exact"]
TrunkName = Literal["resnet50", "resnet18", "efficientnet_lite0", "vgg11"]


MAX_SIZE = 1 << 16
"""Of any width or side in a model: beyond all use, and small enough to compute with."""


@dataclass(frozen=True)
class ModelConfig:
    """Everything that fixes a model's tensors. The defaults are the paper's."""

    architecture: Architecture = "sharpmask"
    trunk: TrunkName = "resnet50"
    """Bottom-up network; efficientnet_lite0 and resnet18 suit CPUs."""
    window: int = 160
    """Window side in pixels, a multiple of 16; 80 and 112 suit CPUs."""
    context: int = 32
    """Pixels of image around a training patch, half on each side."""
    features: int = 128
    """Width of the 1x1 convolution before the window code."""
    code: int = 512
    """Length of the window code that mask, encoding and score share."""
    mask_side: int = 56
    """Side of the coarse mask."""
    score_hidden: int = 1024
    """Hidden units of the score head."""
    refinement: Literal["paper", "released"] = "paper"
    """The paper's modules (bilinear, concatenation) or the released code's (nearest, sum)."""
    mask_channels: tuple[int, ...] = (32, 16, 8, 4, 2)
    """Widths of the mask encodings M1 .. M5."""
    skip_channels: tuple[int, ...] = (32, 16, 8, 4)
    """Widths of the skips S1 .. S4."""
    skip_hidden: int = 64
    """Middle width of the paper's two skip convolutions; 0 for a single convolution."""
    crop_first: bool = False
    """Crop training patches' maps before the horizontal convolutions instead of after."""
    trunk_padding: Literal["symmetric", "reflect"] = "symmetric"
    """How the 3x3 convolutions of a ResNet pad: "reflect" is for weights that were trained so."""

    def build(self) -> DeepMask:
        """The model, with fresh weights; it carries this configuration as ``config``."""
        model = self._build()
        model.config = self
        model.search = SearchConfig.for_window(self.window)
        return model

    def _build(self) -> DeepMask:
        sizes = [("skip_hidden", self.skip_hidden, 0), ("context", self.context, 0)]
        sizes += [(k, getattr(self, k), 1) for k in ("window", "features", "code", "mask_side", "score_hidden")]
        sizes += [(k, v, 1) for k in ("mask_channels", "skip_channels") for v in getattr(self, k)]
        for name, value, least in sizes:
            if not least <= value <= MAX_SIZE:
                raise ValueError(f"{name} must be at least {least} and at most {MAX_SIZE}, got {value}")
        if self.refinement not in ("paper", "released"):
            raise ValueError(f"refinement must be 'paper' or 'released', got {self.refinement!r}")
        trunk = build_trunk(self.trunk)
        if self.trunk_padding == "reflect":
            if not isinstance(trunk, ResNetTrunk):
                raise ValueError(f"trunk_padding must be 'symmetric' for trunk {self.trunk}, got 'reflect'")
            trunk.pad_by_reflection()
        elif self.trunk_padding != "symmetric":
            raise ValueError(f"trunk_padding must be 'symmetric' or 'reflect', got {self.trunk_padding!r}")
        if self.architecture == "deepmask-original":
            return OriginalDeepMask(trunk, window=self.window, context=self.context, mask_side=self.mask_side)
        shared = {
            name: getattr(self, name) for name in ("window", "context", "features", "code", "mask_side", "score_hidden")
        }
        if self.architecture == "deepmask":
            return DeepMask(trunk, **shared)
        if self.architecture == "sharpmask":
            return SharpMask(
                trunk,
                refinement=self.refinement,
                mask_channels=tuple(self.mask_channels),
                skip_channels=tuple(self.skip_channels),
                skip_hidden=self.skip_hidden,
                crop_first=self.crop_first,
                **shared,
            )
        raise ValueError(
            f"architecture must be 'deepmask', 'sharpmask' or 'deepmask-original', got {self.architecture!r}"
        )


@dataclass(frozen=True)
class SearchConfig:
    """How a model's windows are searched over full images. The defaults are the paper's."""

    scales: tuple[float, ...] = tuple(2 ** (e / 2) for e in range(-5, 2))
    """Sizes at which an image is looked at."""
    threshold: float = 0.2
    """Probability above which a pixel belongs to a mask."""
    mask_nms: float | None = None
    """Drop a proposal whose mask overlaps a better one's by more than this IoU; none in the paper."""
    box_nms: float | None = None
    """The same for boxes."""
    soft_nms: bool = False
    """Lower the scores of such proposals instead of dropping them (Soft-NMS)."""
    stability: bool = False
    """Multiply scores by how sharp the mask is: its pixels above probability .5 over those above .12."""
    scale_prior: float = 0.0
    """Multiply scores by (scale / smallest scale) ** -scale_prior: finer scales have more windows to be wrong in."""
    geometry: Geometry = "centres"
    """How windows lie on the image: by pixel centres, or as in the authors' code, for its weights; "released-exact"
    has that code's mistake too, by which a score belongs to the window beside."""

    @classmethod
    def for_window(cls, window: int) -> SearchConfig:
        """The paper's search for objects of the same sizes with windows of another side."""
        return cls(scales=tuple(scale * window / 160 for scale in cls.scales))

    def __post_init__(self) -> None:
        if not self.scales or not all(0 < s <= 16 for s in self.scales):
            raise DataError(f"scales must be numbers above 0 and at most 16, got {self.scales}")
        if not 0 <= self.scale_prior <= 4:
            raise DataError(f"scale_prior must be a number from 0 to 4, got {self.scale_prior}")
        if self.geometry not in get_args(Geometry):
            raise DataError(f"geometry must be one of {', '.join(get_args(Geometry))}, got {self.geometry!r}")
        for name in ("threshold", "mask_nms", "box_nms"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise DataError(f"{name} must be strictly between 0 and 1, got {value}")


def build_model(
    architecture: Architecture,
    *,
    trunk: TrunkName | None = None,
    refinement: Literal["paper", "released"] = "paper",
    weights: str | Path | None = None,
    trunk_weights: str | None = None,
    **options: Any,
) -> DeepMask:
    """A DeepMask or SharpMask model.

    ``trunk``: "resnet50" (the paper's; the default), "resnet18", "efficientnet_lite0"; "vgg11" for
    "deepmask-original". ``refinement``: "paper" or "released". ``weights``: a file of all the model's tensors
    (safetensors). ``trunk_weights``: "imagenet" or a classifier's state_dict file. ``options``: other fields
    of :class:`ModelConfig`. Raises ``ValueError`` on unknown names and unusable sizes, ``DataError`` on
    unusable files.
    """
    original = architecture == "deepmask-original"
    defaults: dict[str, Any] = {"window": 224, "context": 0} if original else {}
    chosen: TrunkName = trunk or ("vgg11" if original else "resnet50")
    model = ModelConfig(architecture, chosen, refinement=refinement, **(defaults | options)).build()
    if trunk_weights is not None:
        model.trunk.load_weights(trunk_weights)
    if weights is not None:
        load_tensors(model, read_state_dict(Path(weights)), str(weights))
    return model


def load_tensors(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load all tensors of ``state`` (from the file ``source``), converting to the model's dtype.

    Raises ``DataError`` naming the first tensor that does not fit.
    """
    own = model.state_dict()
    for name in sorted(own.keys() ^ state.keys()):
        raise DataError(f"{source}: tensor {name} is {'missing' if name in own else 'not part of the model'}")
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise DataError(f"{source}: {name} must be {tuple(own[name].shape)}, got {tuple(tensor.shape)}")
    model.load_state_dict(state)

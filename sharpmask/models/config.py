"""What fixes a model's tensors, and how it is searched over images, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ..errors import DataError

Architecture = Literal["deepmask", "sharpmask", "deepmask-original"]
Geometry = Literal["centres", "released", "released-exact"]
TrunkName = Literal["resnet50", "resnet18", "efficientnet_lite0", "vgg11"]


@dataclass(frozen=True)
class ModelConfig:
    """Everything that fixes a model's tensors. The defaults are the paper's.

    :func:`sharpmask.models.from_config` builds the model.
    """

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


@dataclass(frozen=True)
class SearchConfig:
    """How a model's windows are searched over full images. The defaults are the paper's."""

    scales: tuple[float, ...] = tuple(2 ** (e / 2) for e in range(-5, 2))
    """Factors by which an image is resized; each is searched."""
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
    also repeats that code's mistake, by which a score belongs to the window beside it."""

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

"""What fixes a model's tensors, and how it is searched over images, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from ..errors import DataError
from ..plain import from_plain
from ..ranges import Length, Range, Settings

Architecture = Literal["deepmask", "sharpmask", "deepmask-original"]
Geometry = Literal["centres", "released", "released-exact"]
TrunkName = Literal["resnet50", "resnet18", "efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2", "vgg11"]

STRIDE = 16
MAX_WIDTH = 1 << 14
MAX_WEIGHTS = 1 << 28
WIDEST_TRUNK = 1024
Width: TypeAlias = Annotated[int, Range(1, MAX_WIDTH)]
SearchScale: TypeAlias = Annotated[float, Range(1 / 64, 16)]
INSIDE = Range(0, 1, above=True, below=True)
RANKED_BY = (
    *("score", "stability", "octave", "outside", "area", "certainty", "blur", "outline", "border", "offset"),
    *("height", "width", "middle"),
)
"""The statistics of a mask that a learned ranking weighs: sharpmask/search/ranking.py."""
Weight: TypeAlias = Annotated[float, Range(-1e6, 1e6)]


@dataclass(frozen=True)
class ModelConfig(Settings):
    """Everything that fixes a model's tensors. The defaults are the paper's.

    :func:`sharpmask.models.from_config` builds the model.
    """

    architecture: Architecture = "sharpmask"
    trunk: TrunkName = "resnet50"
    """Bottom-up network; efficientnet_lite0 (the smallest) to lite2 and resnet18 suit CPUs."""
    window: Annotated[int, Range(16, 1024, multiple=16)] = 160
    """Window side in pixels, a multiple of 16; 80 and 112 suit CPUs."""
    context: Annotated[int, Range(0, 1024, multiple=32)] = 32
    """Pixels of image around a training patch, half on each side."""
    features: Width = 128
    """Width of the 1x1 convolution before the window code."""
    code: Width = 512
    """Length of the window code that mask, encoding and score share."""
    mask_side: Annotated[int, Range(1, 1024)] = 56
    """Side of the coarse mask."""
    score_hidden: Width = 1024
    """Hidden units of the score head."""
    refinement: Literal["paper", "released"] = "paper"
    """The paper's modules (bilinear, concatenation) or the released code's (nearest, sum)."""
    mask_channels: Annotated[tuple[Width, ...], Length(1, 16)] = (32, 16, 8, 4, 2)
    """Widths of the mask encodings M1 .. M5."""
    skip_channels: Annotated[tuple[Width, ...], Length(1, 16)] = (32, 16, 8, 4)
    """Widths of the skips S1 .. S4."""
    skip_hidden: Annotated[int, Range(0, MAX_WIDTH)] = 64
    """Middle width of the paper's two skip convolutions; 0 for a single convolution."""
    crop_first: bool = False
    """Crop training patches' maps before the horizontal convolutions instead of after."""
    trunk_padding: Literal["symmetric", "reflect"] = "symmetric"
    """How the 3x3 convolutions of a ResNet pad: "reflect" is for weights that were trained so."""

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = self._weights()
        if sum(sizes.values()) > MAX_WEIGHTS:
            largest = max(sizes, key=sizes.__getitem__)
            raise DataError(
                f"a model must have at most {MAX_WEIGHTS} weights beyond its trunk, got {sum(sizes.values())}, "
                f"{sizes[largest]} of them by {largest}"
            )

    def _weights(self) -> dict[str, int]:
        """The number of weights in the layers that the settings can make large, by the settings."""
        cells = (self.window // STRIDE) ** 2
        # The trunk and features of the original DeepMask have 512 channels whatever the settings are.
        features = max(self.features, 512) if self.architecture == "deepmask-original" else self.features
        found = {
            "window, features and code": cells * features * self.code,
            "code and mask_side": self.code * self.mask_side**2,
            "code and score_hidden": self.code * self.score_hidden,
        }
        if self.architecture == "sharpmask":
            widths = (*self.mask_channels, *self.skip_channels, self.skip_hidden, WIDEST_TRUNK)
            found["window, code and mask_channels"] = cells * self.code * self.mask_channels[0]
            found["mask_channels, skip_channels and skip_hidden"] = 9 * sum(sorted(widths)[-2:]) ** 2
        return found


@dataclass(frozen=True)
class SearchConfig(Settings):
    """How a model's windows are searched over full images. The defaults are the paper's."""

    scales: Annotated[tuple[SearchScale, ...], Length(1, 64, distinct=True)] = tuple(2 ** (e / 2) for e in range(-5, 2))
    """Factors by which an image is resized; each is searched."""
    threshold: Annotated[float, INSIDE] = 0.2
    """Probability above which a pixel belongs to a mask."""
    mask_nms: Annotated[float, INSIDE] | None = None
    """Drop a proposal whose mask overlaps a better one's by more than this IoU; none in the paper."""
    box_nms: Annotated[float, INSIDE] | None = None
    """The same for boxes."""
    soft_nms: bool = False
    """Lower the scores of such proposals instead of dropping them (Soft-NMS)."""
    stability: Annotated[float, Range(0, 4)] = 0.0
    """Multiply scores by how sharp the mask is, its pixels above probability .5 over those above .12, to this power."""
    scale_prior: Annotated[float, Range(0, 4)] = 0.0
    """Multiply scores by (scale / smallest scale) ** -scale_prior: finer scales have more windows to be wrong in."""
    spread: Annotated[float, Range(0, 4)] = 0.0
    """Of windows side by side refine the better first: multiply scores by exp(-spread) for each of the eight windows
    around that scores higher. This decides which windows are refined, not how their masks are ranked."""
    candidates: Annotated[int, Range(0, 100_000)] = 0
    """Refine at least so many windows, of which the best masks are returned."""
    ranking: Annotated[tuple[Weight, ...], Length(0, 1 + len(RANKED_BY))] = ()
    """Learned ranking: a bias and the weights of ``RANKED_BY``. Its score takes the place of the window's, of stability
    and of the scale prior. Empty for none."""
    geometry: Geometry = "centres"
    """How windows lie on the image: by pixel centres, or as in the authors' code, for its weights; "released-exact"
    also repeats that code's mistake, by which a score belongs to the window beside it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.ranking) not in (0, 1 + len(RANKED_BY)):
            raise DataError(f"ranking must be empty or {1 + len(RANKED_BY)} weights, got {len(self.ranking)}")

    @classmethod
    def for_window(cls, window: int) -> SearchConfig:
        """The paper's search for objects of the same sizes with windows of another side."""
        return cls(scales=tuple(scale * window / 160 for scale in cls.scales))

    @classmethod
    def stored(cls, plain: Any, place: str) -> SearchConfig:
        """The settings that a checkpoint has. Raises ``DataError`` that names the ``place`` for what is none."""
        if isinstance(plain, dict) and isinstance(plain.get("stability"), bool):  # in older ones it was a switch
            plain = plain | {"stability": float(plain["stability"])}
        scales = plain.get("scales") if isinstance(plain, dict) else None
        if isinstance(scales, list) and all(isinstance(scale, int | float) for scale in scales):
            plain = plain | {"scales": list(dict.fromkeys(scales))}  # some older ones have a scale twice
        return from_plain(cls, plain, place)

"""The options of every command. Training takes its own from :class:`sharpmask.training.TrainConfig`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from ..models.config import Geometry


@dataclass(frozen=True)
class SearchOptions:
    """How full images are searched; what is not given comes from the checkpoint."""

    scales: tuple[float, ...] | None = None
    """Sizes at which an image is looked at, e.g. 0.25 0.5 1."""
    threshold: float | None = None
    """Probability above which a pixel belongs to a mask."""
    mask_nms: float | None = None
    """Drop proposals whose mask overlaps a better one's by more than this IoU; 1 for none."""
    box_nms: float | None = None
    """The same for boxes."""
    soft_nms: bool | None = None
    """Lower the scores of such proposals instead of dropping them."""
    stability: bool | None = None
    """Multiply scores by how sharp the mask is."""
    scale_prior: float | None = None
    """Multiply scores by (scale / smallest scale) ** -scale_prior; 0 for none."""
    geometry: Geometry | None = None
    """How windows lie on the image: centres (of pixels), or released or released-exact, as in the authors' code."""
    max_side: int = 800
    """Longer photos are searched as if their longer side had this many pixels; 0 for no limit."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1, ..."""


@dataclass(frozen=True)
class Demo:
    """Find objects on a photo that comes with the package, and show how a mask grows."""

    out: Path = Path("sharpmask-demo")
    """Folder to write into."""


@dataclass(frozen=True)
class Propose:
    """Find object masks on photos.

    Writes proposals.json (COCO results), and per photo a JSON file and an overlay picture.
    """

    images: Positional[tuple[Path, ...]]
    """Photos, or folders of photos."""
    checkpoint: Path | None = None
    """Model to use; without one, the model that comes with the package."""
    top_n: int = 100
    """Windows to refine per photo."""
    out: Path = Path("proposals")
    """Folder to write into."""
    refine: bool = True
    """Refine masks, or keep the coarse ones."""
    overlay: bool = True
    """Write overlay pictures."""
    timing: bool = False
    """Print the time of each stage."""
    resume: bool = False
    """Keep photos that have a result in the output folder already."""
    search: Annotated[SearchOptions, arg(name="")] = field(default_factory=SearchOptions)


@dataclass(frozen=True)
class Eval:
    """Measure average recall on a COCO-format folder, of a model or of a results file."""

    dataset: Path
    """Folder with images and a COCO instances file."""
    annotations: Path | None = None
    """COCO instances file, where it is not found by itself."""
    checkpoint: Path | None = None
    """Model to measure; without one and without results, the model that comes with the package."""
    results: Path | None = None
    """COCO results JSON to measure instead of a model."""
    out: Path = Path("evaluation")
    """Folder to write into."""
    top_n: int = 1000
    """Proposals per photo."""
    coarse: bool = False
    """Measure the coarse masks of the same windows too."""
    patches: int = 0
    """Also measure the IoU of single patches, on so many."""
    categories: tuple[str, ...] = ()
    """Count objects of these categories only; empty for all."""
    skip_bad: bool = False
    """Leave out broken images and annotations, and count them, instead of stopping."""
    resume: bool = False
    """Keep photos that have a result in the output folder already."""
    search: Annotated[SearchOptions, arg(name="")] = field(default_factory=SearchOptions)


@dataclass(frozen=True)
class Pack:
    """Write a checkpoint for passing on: 16-bit weights, and the search settings that suit it."""

    checkpoint: Positional[Path]
    """Checkpoint to read."""
    out: Positional[Path]
    """Checkpoint to write."""
    search: Annotated[SearchOptions, arg(name="")] = field(default_factory=SearchOptions)


@dataclass(frozen=True)
class Convert:
    """Turn the authors' released model.t7, or weights of the PyTorch port of DeepMask, into a checkpoint."""

    weights: Positional[Path]
    """File to read; nothing in it is run."""
    out: Positional[Path]
    """Checkpoint to write."""


@dataclass(frozen=True)
class Synth:
    """Write a COCO-format folder of made-up pictures with occluding textured objects."""

    out: Positional[Path]
    """Folder to write into; must not exist yet or be empty."""
    images: int = 100
    seed: int = 0
    size: tuple[int, int] = (240, 320)
    """Height and width of the pictures."""
    textures: Literal["auto", "photo", "generated"] = "auto"
    """From photos of scikit-image where it is installed, or generated."""


OPTIONS: dict[str, Any] = {
    "demo": Demo,
    "propose": Propose,
    "eval": Eval,
    "synth": Synth,
    "pack": Pack,
    "convert": Convert,
}
STAGES: dict[str, str] = {
    "deepmask": "Train the coarse mask and the score (the paper's first stage).",
    "sharpmask": "Train the refinement, all else frozen (the second stage).",
    "joint": "Train all heads at once on dense tiles (the recipe of the model that comes with the package).",
}

"""The options of the commands. Those of ``train`` are the fields of :class:`sharpmask.training.TrainConfig`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from ..models.config import Geometry


@dataclass(frozen=True)
class SearchOptions:
    """How full images are searched. Settings that are not given come from the checkpoint."""

    scales: tuple[float, ...] | None = None
    """Scales at which an image is searched, e.g. 0.25 0.5 1."""
    threshold: float | None = None
    """Probability above which a pixel belongs to a mask."""
    mask_nms: float | None = None
    """Drop a proposal if its mask has more than this IoU with that of a better one; 1 to drop none."""
    box_nms: float | None = None
    """The same with boxes instead of masks."""
    soft_nms: bool | None = None
    """Lower the scores of such proposals instead of dropping them (Soft-NMS)."""
    stability: bool | None = None
    """Multiply each score by how sharp its mask is."""
    scale_prior: float | None = None
    """Multiply scores by (scale / smallest scale) ** -scale_prior; 0 to leave them."""
    geometry: Geometry | None = None
    """How windows lie on the image: by pixel centres, or (released, released-exact) as in the authors' code."""
    max_side: int = 800
    """A photo with a longer side is searched as if that side had this many pixels; 0 for no limit."""
    device: str = "cpu"
    """Device to compute on: cpu, cuda, cuda:1, ..."""


@dataclass(frozen=True)
class Demo:
    """Find objects in a photo that comes with the package, and show how a mask grows."""

    out: Path = Path("sharpmask-demo")
    """Folder to write into."""


@dataclass(frozen=True)
class Propose:
    """Find object masks in photos.

    Writes proposals.json (COCO results), and a JSON file and an overlay picture of each photo.
    """

    images: Positional[tuple[Path, ...]]
    """Photos, or folders of photos."""
    recursive: bool = False
    """Search the photos in subfolders too."""
    checkpoint: Path | None = None
    """Model to use. Without one: the model that comes with the package."""
    top_n: int = 100
    """Windows to refine per photo."""
    out: Path = Path("proposals")
    """Folder to write into."""
    refine: bool = True
    """Refine the masks; otherwise keep the coarse ones."""
    overlay: bool = True
    """Write overlay pictures."""
    timing: bool = False
    """Print the time of each stage."""
    resume: bool = False
    """Skip photos that have a result in the output folder already."""
    search: Annotated[SearchOptions, arg(name="")] = field(default_factory=SearchOptions)


@dataclass(frozen=True)
class Eval:
    """Measure average recall of a model, or of a results file, on a COCO-format folder."""

    dataset: Path
    """Folder with images and a COCO instances file."""
    annotations: Path | None = None
    """COCO instances file, if it is not in a standard place of the folder."""
    checkpoint: Path | None = None
    """Model to measure. Without one, and without results: the model that comes with the package."""
    results: Path | None = None
    """COCO results file (JSON) to measure instead of a model."""
    out: Path = Path("evaluation")
    """Folder to write into."""
    top_n: int = 1000
    """Proposals per photo."""
    coarse: bool = False
    """Also measure the coarse masks of the same windows."""
    patches: int = 0
    """Also measure the IoU of single patches, on this many; 0 for none."""
    categories: tuple[str, ...] = ()
    """Categories of objects to count; empty for all."""
    skip_bad: bool = False
    """Leave out broken images and annotations, and count them, instead of stopping."""
    resume: bool = False
    """Skip photos that have a result in the output folder already."""
    search: Annotated[SearchOptions, arg(name="")] = field(default_factory=SearchOptions)


@dataclass(frozen=True)
class Pack:
    """Write a checkpoint to share: with 16-bit weights, and the search settings given here."""

    checkpoint: Positional[Path]
    """Checkpoint to read."""
    out: Positional[Path]
    """Checkpoint to write."""
    search: Annotated[SearchOptions, arg(name="")] = field(default_factory=SearchOptions)


@dataclass(frozen=True)
class Convert:
    """Turn the authors' released model.t7, or weights of the PyTorch port of DeepMask, into a checkpoint."""

    weights: Positional[Path]
    """File to read. No code in it is run."""
    out: Positional[Path]
    """Checkpoint to write."""


@dataclass(frozen=True)
class Synth:
    """Write a COCO-format folder of generated pictures with occluding textured objects."""

    out: Positional[Path]
    """Folder to write into. It must be new or empty."""
    images: int = 100
    """Number of pictures."""
    seed: int = 0
    """Seed of all randomness; the same seed gives the same pictures."""
    size: tuple[int, int] = (240, 320)
    """Height and width of the pictures."""
    textures: Literal["auto", "photo", "generated"] = "auto"
    """photo: cut from the photos of scikit-image. generated: drawn. auto: photo if scikit-image is installed."""


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
    "sharpmask": "Train the refinement while all else is frozen (the second stage).",
    "joint": "Train all heads at once on dense tiles, as the model that comes with the package was trained.",
}

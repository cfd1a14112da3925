"""The options of the commands. Those of ``train`` are the fields of :class:`sharpmask.training.TrainConfig`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from tyro.conf import Positional, arg

from ..data.links import Links
from ..data.orientation import Exif
from ..engines import ExportFormat
from ..errors import DataError
from ..ranges import Range, Settings
from .replacing import FileKind, Overwrite
from .search_options import ClusterOptions, EngineOptions, SearchOptions, StoredSearch

FORMATS = ("coco", "labelme", "yolo", "png", "parquet")
"""What ``propose`` can write."""
GROUPINGS = ("size", "category", "source")
"""What ``eval`` can break recall down by."""
FEWEST_RESAMPLES = 100
"""The ends of a 95 % interval of fewer would be the two or three outermost."""
TopN: TypeAlias = Annotated[int, Range(1, 100_000)]
Side: TypeAlias = Annotated[int, Range(64, 8192)]


def _names(given: str, option: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """The names that an option gives, separated by commas. Raises ``DataError`` unless they are ``known``."""
    names = tuple(dict.fromkeys(name.strip() for name in given.split(",")))
    for name in names:
        if name not in known:
            told = ", ".join(known)
            raise DataError(f"{option} must be some of {told}, separated by commas, got {name!r} in {given!r}")
    return names


@dataclass(frozen=True)
class Demo(Settings):
    """Find objects in a photo that comes with the package, and show how a mask grows."""

    out: Path = Path("sharpmask-demo")
    """Folder to write into."""


@dataclass(frozen=True)
class Propose(Settings):
    """Find object masks in photos.

    Writes proposals.json (COCO results), and a JSON file and an overlay picture of each photo.
    """

    images: Positional[Annotated[tuple[Path, ...], arg(metavar="PHOTO...", help_behavior_hint="(required)")]]
    """Photos, folders of photos, videos, patterns such as 'a/*.jpg', or - to read paths from stdin, one a line."""
    every: Annotated[int, Range(1, 1_000_000)] = 10
    """Of a video, search one frame in this many."""
    recursive: bool = False
    """Search the photos in subfolders too."""
    exif: Exif = "turned"
    """Whether masks are of photos as turned by their EXIF orientation, as viewers show them, or as stored."""
    checkpoint: Path | None = None
    """Model to use: a file, or small (the default, comes with the package) or base."""
    top_n: TopN = 100
    """Windows to refine per photo."""
    out: Path = Path("proposals")
    """Folder to write into."""
    refine: bool = True
    """Refine the masks; otherwise keep the coarse ones."""
    format: str = "coco"
    """What to write, separated by commas: coco, labelme, yolo, png, parquet (docs/command-line.md)."""
    overlay: bool = True
    """Write overlay pictures."""
    timing: bool = False
    """Print the time of each stage."""
    resume: bool = False
    """Go on with a stopped run: photos whose results of the same settings are in the output folder are done."""
    json: bool = False
    """Print the results of one photo to stdout, and write no file."""
    quiet: bool = False
    """Print errors only."""
    search: Annotated[SearchOptions, arg(name="")] = field(default_factory=SearchOptions)
    compute: Annotated[EngineOptions, arg(name="")] = field(default_factory=EngineOptions)
    scale: Annotated[ClusterOptions, arg(name="")] = field(default_factory=ClusterOptions)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale.cluster and (self.json or self.timing or self.format != "coco"):
            raise DataError("cluster: it writes Parquet, so leave out --json, --format and --timing")
        if self.scale.retry_errors and not self.resume:
            raise DataError("retry-errors: it needs --resume")
        if self.scale.restart and self.resume:
            raise DataError("restart and resume: give one of the two")
        if self.json and (self.resume or self.format != "coco" or self.out != type(self).out):
            raise DataError("json: it writes no file, so leave out --out, --resume and --format, or --json")
        _names(self.format, "format", FORMATS)

    @property
    def formats(self) -> tuple[str, ...]:
        """The names in ``format``."""
        return _names(self.format, "format", FORMATS)


@dataclass(frozen=True)
class App(Settings):
    """Open a page in the browser: drop a photo, get masks by proposals, clicks and boxes, download them.

    The page and its photos stay on this computer.
    """

    checkpoint: Path | None = None
    """Model to use: a file, or small (the default, comes with the package) or base."""
    port: Annotated[int, Range(0, 65535)] = 7860
    """Port of 127.0.0.1 to serve the page at; 0 for any that is free."""
    browser: bool = True
    """Open the page in the browser."""
    top_n: TopN = 100
    """Windows to refine per photo."""
    exif: Exif = "turned"
    """Whether photos are shown and masked as turned by their EXIF orientation, as viewers do, or as stored."""
    search: Annotated[SearchOptions, arg(name="")] = field(default_factory=SearchOptions)
    compute: Annotated[EngineOptions, arg(name="")] = field(default_factory=EngineOptions)


@dataclass(frozen=True)
class Eval(Settings):
    """Measure average recall of a model, or of a results file, on a COCO-format folder."""

    dataset: Path
    """Folder with images and a COCO instances file."""
    annotations: Path | None = None
    """COCO instances file, if it is not in a standard place of the folder."""
    checkpoint: Path | None = None
    """Model to measure: a file, small or base. Without one, and without results: small."""
    results: Path | None = None
    """COCO results file (JSON) to measure instead of a model."""
    out: Path = Path("evaluation")
    """Folder to write into."""
    top_n: TopN = 1000
    """Proposals per photo."""
    by: str = ""
    """Also print the recall by size, category or source of the photo, or by several of these, separated by commas."""
    against: Path | None = None
    """COCO results file of the same photos to compare with: the differences, with their intervals."""
    bootstrap: Annotated[int, Range(0, 100_000)] = 1000
    """Resamples of the photos from which the 95 % intervals are taken, at least 100; 0 for no intervals."""
    gallery: Annotated[int, Range(0, 1000)] = 0
    """Also write gallery.html, a page of so many objects that are missed by most; 0 for none."""
    coarse: bool = False
    """Also measure the coarse masks of the same windows."""
    patches: Annotated[int, Range(0, 1_000_000)] = 0
    """Also measure the IoU of single patches, on this many; 0 for none."""
    categories: tuple[str, ...] = ()
    """Categories of objects to count; empty for all."""
    skip_bad: bool = False
    """Leave out broken images and annotations, and count them, instead of stopping. Their objects are ignored."""
    exif: Exif | None = None
    """Pixels that annotations refer to: as stored, or turned by EXIF. Needed for photos with an EXIF orientation."""
    links: Links = "follow"
    """Symbolic links that lead out of the folder: follow or refuse them."""
    resume: bool = False
    """Go on with a stopped run: photos whose results of the same settings are in the output folder are done."""
    search: Annotated[SearchOptions, arg(name="")] = field(default_factory=SearchOptions)
    compute: Annotated[EngineOptions, arg(name="")] = field(default_factory=EngineOptions)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.results is not None and self.checkpoint is not None:
            raise DataError("results and checkpoint: give one of the two")
        for name in ("patches", "coarse", "resume"):
            if self.results is not None and getattr(self, name):
                raise DataError(f"{name}: it needs a model, so leave out --{name} or --results")
        if 0 < self.bootstrap < FEWEST_RESAMPLES:
            raise DataError(f"bootstrap must be 0 or at least {FEWEST_RESAMPLES}, got {self.bootstrap}")
        _ = self.groupings  # refuses unknown names

    @property
    def groupings(self) -> tuple[str, ...]:
        """The names in ``by``."""
        return _names(self.by, "by", GROUPINGS) if self.by else ()


@dataclass(frozen=True)
class Pack(Settings):
    """Write a checkpoint to share: with 16-bit weights, and the search settings given here."""

    writes: ClassVar[FileKind] = "checkpoint"
    checkpoint: Positional[Annotated[Path, arg(metavar="CHECKPOINT")]]
    """Checkpoint to read: a file, small or base."""
    out: Positional[Annotated[Path, arg(metavar="OUT")]]
    """Checkpoint to write."""
    rank_on: Path | None = None
    """COCO-format folder of photos to fit a learned ranking to, which takes the place of stability and scale prior."""
    overwrite: Overwrite = False
    search: Annotated[StoredSearch, arg(name="")] = field(default_factory=StoredSearch)


@dataclass(frozen=True)
class Export(Settings):
    """Write a model as graphs for ONNX Runtime, OpenVINO or PyTorch without this package."""

    checkpoint: Positional[Annotated[Path, arg(metavar="CHECKPOINT")]]
    """Checkpoint to read: a file, small or base."""
    out: Positional[Annotated[Path, arg(metavar="OUT")]]
    """Folder to write into."""
    to: tuple[ExportFormat, ...] = ("onnx",)
    """Formats: onnx, openvino, torch (torch.export), aoti (compiled for this machine)."""


@dataclass(frozen=True)
class Convert(Settings):
    """Turn the authors' released model.t7, or weights of the PyTorch port of DeepMask, into a checkpoint."""

    writes: ClassVar[FileKind] = "checkpoint"
    weights: Positional[Annotated[Path, arg(metavar="WEIGHTS")]]
    """File to read. No code in it is run."""
    out: Positional[Annotated[Path, arg(metavar="OUT")]]
    """Checkpoint to write."""
    overwrite: Overwrite = False


@dataclass(frozen=True)
class Synth(Settings):
    """Write a COCO-format folder of generated pictures with occluding textured objects."""

    out: Positional[Annotated[Path, arg(metavar="FOLDER")]]
    """Folder to write into. It must be new or empty."""
    images: Annotated[int, Range(1, 1_000_000)] = 100
    """Number of pictures."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Seed of all randomness; the same seed gives the same pictures."""
    size: tuple[Side, Side] = (240, 320)
    """Height and width of the pictures."""
    textures: Literal["auto", "photo", "generated"] = "auto"
    """photo: cut from the photos of scikit-image. generated: drawn. auto: photo if scikit-image is installed."""


@dataclass(frozen=True)
class ConvertDataset(Settings):
    """Turn annotations of labelme, Pascal VOC or YOLO (segmentation) into a COCO instances file for training."""

    writes: ClassVar[FileKind] = "instances"
    dataset: Positional[Annotated[Path, arg(metavar="FOLDER")]]
    """Folder with photos and their annotations."""
    out: Path | None = None
    """File to write. Without one: instances.json in the folder, where training finds it."""
    layout: Literal["labelme", "voc", "yolo"] | None = None
    """Which program's files to read. Without one: those that are there."""
    partial: bool = False
    """Write into the file that the photos hold objects without an annotation: training then takes no negatives."""
    exif: Exif | None = None
    """Pixels that annotations refer to: as stored, or turned by EXIF. Needed for photos with an EXIF orientation."""
    overwrite: Overwrite = False


@dataclass(frozen=True)
class Results(Settings):
    """Count rows of proposals, filter and merge them, and turn them into the formats of other programs.

    Without --to, the counts alone are printed.
    """

    rows: Positional[Annotated[tuple[Path, ...], arg(metavar="ROWS...", help_behavior_hint="(required)")]]
    """Parquet files of rows, and folders of such files; or URLs of these, such as s3://bucket/rows."""
    to: Literal["coco", "labelme", "yolo", "parquet"] | None = None
    """What to write: COCO results, labelme's JSON or YOLO's labels a photo, or all rows in one Parquet file."""
    out: Path | None = None
    """File to write, or for labelme and yolo folder."""
    min_score: Annotated[float, Range(0, 1)] = 0.0
    """Leave out proposals of lower scores."""
    min_area: Annotated[int, Range(0, 2**31 - 1)] = 0
    """Leave out proposals of fewer pixels."""
    top: TopN | None = None
    """Of a photo's proposals that are left, take so many."""
    photos: str = "*"
    """Take photos alone whose whole path, or id where there is no path, is like this, such as '*/holiday/*'."""
    mixed: bool = False
    """Take rows that were made with different settings."""
    overwrite: Overwrite = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.to is None) != (self.out is None):
            raise DataError("to and out must be given together, got one of them; without both, the counts are printed")

    @property
    def writes(self) -> FileKind | None:
        """The kind of the file that ``out`` is; None for a folder."""
        kinds: dict[str | None, FileKind] = {"coco": "results", "parquet": "rows"}
        return kinds.get(self.to)


OPTIONS: dict[str, Any] = {
    "demo": Demo,
    "propose": Propose,
    "app": App,
    "results": Results,
    "eval": Eval,
    "synth": Synth,
    "pack": Pack,
    "export": Export,
    "convert": Convert,
    "convert-dataset": ConvertDataset,
}
STAGES: dict[str, str] = {
    "deepmask": "Train the coarse mask and the score (the paper's first stage).",
    "sharpmask": "Train the refinement while all else is frozen (the second stage).",
    "joint": "Train all heads at once on dense tiles, as the models that come with the package were trained.",
}

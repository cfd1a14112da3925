"""The settings of training and of its stages. Without PyTorch: a command line is checked before that is loaded.

Stage "deepmask" learns the coarse mask and the score. Stage "sharpmask" then learns the refinement while the other
parameters are frozen (SharpMask, section 3.3). Stage "joint" learns everything at once, for small trunks and small
data sets.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ..data.data_set import DataSet, data_sets
from ..data.links import Links
from ..data.orientation import Exif
from ..data.tile_config import TileConfig
from ..errors import DataError, counted
from ..models.config import ModelConfig
from ..ranges import Length, Range, Settings

StageName = Literal["deepmask", "sharpmask", "joint"]
ScoreTarget = Literal["hard", "soft", "quality"]

TrainPrecision = Literal["fp32", "bf16"]
"""What PyTorch casts to in a step. Not fp16, whose gradients would have to be scaled so that they do not vanish."""

TERMS: dict[str, tuple[str, ...]] = {
    "deepmask": ("coarse", "score"),
    "sharpmask": ("refined",),
    "joint": ("coarse", "refined", "score"),
}
"""The terms of each stage's loss."""

EPOCH = 4000
"""Batches in an epoch of the released code."""
MANY = 10**9
"""More steps than any run has."""
STEPS = Range(1, MANY)


@dataclass(frozen=True)
class TrainConfig(Settings):
    """All settings of a training run. A YAML file and the command line set the same fields.

    Raises ``DataError`` for settings that are out of range or do not fit together.
    """

    dataset: Annotated[tuple[Path, ...], Length(1, 1000)]
    """Folders with images and a COCO instances file. FOLDER:NUMBER weighs one of several: how often it is drawn."""
    out: Path
    """Folder of the run: checkpoints, log and settings."""
    annotations: tuple[Path, ...] = ()
    """COCO instances file of each data set, if they are not in a standard place."""
    partial: bool = False
    """The photos hold objects without an annotation, so they give no negatives. Files can say this, too."""
    held_out: tuple[str, ...] = ()
    """Photos, by file name, not to train on. Without a validation folder they are those to validate on."""
    stage: tyro.conf.Suppress[StageName] = "deepmask"
    model: Annotated[ModelConfig, tyro.conf.arg(name="")] = field(default_factory=ModelConfig)
    trunk_weights: str | None = None
    """"imagenet", or a file with a classifier's state_dict."""
    start_from: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Checkpoint to start from: a file, small or base. The model takes the sizes of its trunk and heads."""
    validation: Path | None = None
    """Folder like the data sets to validate on. Without one, and without photos held out, there is no validation."""
    validation_annotations: Path | None = None
    """COCO instances file of that folder, if it is not in a standard place."""
    categories: tuple[str, ...] = ()
    """Categories of objects to train on; empty for all."""
    skip_bad: bool = False
    """Leave out broken images and annotations, and count them, instead of stopping. Their objects are ignored."""
    exif: Exif | None = None
    """Pixels that annotations refer to: as stored, or turned by EXIF. Needed for photos with an EXIF orientation."""
    links: Links = "follow"
    """Symbolic links that lead out of a data set: follow or refuse them."""

    sampling: Literal["patches", "dense"] = "patches"
    """patches: one window each, as in the paper. dense: many windows on each tile of a photo."""
    rule: Literal["paper", "released"] = "paper"
    """How patches are chosen: as in the paper, or as in the released code."""
    batch_size: Annotated[int, Range(1, 4096)] = 32
    """Patches in a batch."""
    score_share: Annotated[float, Range(0, 1)] = 0.5
    """Share of the batches of patches that train the score; the others train the mask."""
    tiles: TileConfig = field(default_factory=TileConfig)
    accumulate: Annotated[int, Range(1, 4096)] = 1
    """Batches that each process takes in a step. Their gradient is that of one batch so many times as large."""

    steps: Annotated[int, STEPS] = 300 * EPOCH
    """Number of training steps, one batch each, or as many as are accumulated."""
    trained: Literal["stage", "all"] = "stage"
    """Parameters to train: those of the stage, or all of the model (fine-tuning)."""
    frozen_stages: Annotated[int, Range(0, 100)] = 0
    """Number of stages of the trunk to freeze, counted from the image."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW."""
    lr: Annotated[float, Range(0, 1000, above=True)] = 1e-3
    """Learning rate before the schedule."""
    trunk_lr: Annotated[float, Range(0, 1000)] = 1.0
    """The trunk's learning rate as a factor on that of the rest."""
    momentum: Annotated[float, Range(0, 1, below=True)] = 0.9
    """Momentum of SGD."""
    weight_decay: Annotated[float, Range(0, 100)] = 5e-5
    """Weight decay of all trained parameters."""
    schedule: Literal["steps", "cosine"] = "steps"
    """Learning rate: in steps at the milestones, or along half a cosine down to 0."""
    milestones: Annotated[tuple[Annotated[int, STEPS], ...], Length(0, 1000)] = (50 * EPOCH, 120 * EPOCH)
    """Steps at which the schedule "steps" moves to the next of the factors."""
    factors: Annotated[tuple[Annotated[float, Range(0, 1000)], ...], Length(0, 1000)] = (0.5, 0.1)
    """Learning rate after each milestone, as a factor on the first one."""
    warmup: Annotated[int, Range(0, MANY)] = 0
    """Steps during which the learning rate rises linearly from zero."""
    clip: Annotated[float, Range(0, MANY)] = 0.0
    """Largest norm of the gradient, to which longer ones are clipped; 0 for no limit."""
    ema: Annotated[float, Range(0, 1, below=True)] = 0.0
    """Decay of the moving average of the weights. Checkpoints hold the average; 0 for none."""

    loss_scale: Annotated[float, Range(0, 1e6, above=True)] = 32.0
    """Factor on the whole loss. The paper's stages have 32, because the released code sums over 32 masks."""
    score_weight: Annotated[float, Range(0, 1e6)] = 1 / 32
    """Weight of the score's loss (lambda in DeepMask, section 3)."""
    dice: Annotated[float, Range(0, 1e6)] = 0.0
    """Weight of a dice loss of masks, which is added to their logistic loss."""
    score_target: ScoreTarget = "hard"
    """Score target of positive windows: hard: 1; soft, quality: clamp(1.1 IoU, .3, 1), IoU, of the predicted mask."""

    validate_every: Annotated[int, STEPS] = 2 * EPOCH
    """Steps from one validation to the next."""
    validation_samples: Annotated[int, Range(1, 1_000_000)] = 512
    """Patches to validate on: so many for masks and so many for scores."""
    save_every: Annotated[int, STEPS] = 1000
    """Steps from one checkpoint to the next."""
    log_every: Annotated[int, STEPS] = 50
    """Steps from one line of the log to the next."""
    workers: Annotated[int, Range(0, 1024)] = 2
    """Processes that prepare batches; 0 for none."""
    threads: Annotated[int, Range(0, 1024)] = 0
    """CPU threads of PyTorch; 0 for PyTorch's own choice."""
    device: str = "cpu"
    """Device to train on: cpu, cuda, cuda:1, ..."""
    precision: TrainPrecision = "fp32"
    """bf16: products of 16-bit numbers (autocast), for GPUs. Weights, gradients and losses stay in fp32."""
    compile: bool = False
    """Compile the model and the losses by torch.compile, which takes minutes before the first steps."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 1
    """Seed of all randomness: weights, batches and dropout."""
    resume: Literal[True, False, "auto"] = False
    """Continue the run in the output folder from its last saved step; "auto": start it if there is none."""
    change: tuple[str, ...] = ()
    """Settings that may differ from those of the run that is continued, which are otherwise refused."""

    def __post_init__(self) -> None:
        # One data set needs no list.
        for name in ("dataset", "annotations"):
            value = getattr(self, name)
            if value is None or isinstance(value, str | PathLike):
                object.__setattr__(self, name, () if value is None else (value,))
        super().__post_init__()
        self.data_sets()
        if self.stage != "deepmask" and self.model.architecture != "sharpmask":
            raise DataError(f"architecture must be 'sharpmask' in stage {self.stage!r}")
        if len(self.milestones) != len(self.factors):
            raise DataError(
                f"factors must be {counted(len(self.milestones), 'number')} like milestones, got {self.factors}"
            )
        if self.change and not self.resume:
            raise DataError(f"change is for a run that is resumed, got {', '.join(self.change)} without resume")
        if any(late <= early for early, late in pairwise(self.milestones)):
            raise DataError(f"milestones must rise, got {self.milestones}")

    def data_sets(self) -> tuple[DataSet, ...]:
        """The data sets to train on."""
        return () if self.dataset is tyro.MISSING else data_sets(self.dataset, self.annotations)


SMALL = ModelConfig(
    trunk="efficientnet_lite0",
    window=112,
    features=64,
    mask_side=40,
    score_hidden=256,
    mask_channels=(32, 16, 8, 8, 8),
    skip_channels=(32, 16, 8, 8),
    skip_hidden=32,
)
"""A model for CPUs: "small", which comes with the package.

Its last two mask encodings have 8 channels, because of the paper's 2 at the end both can die in training.
"""


FINE_TUNING: dict[str, Any] = {
    "steps": 400,
    "lr": 3e-4,
    "warmup": 20,
    "ema": 0.99,
    "validate_every": 100,
    "validation_samples": 64,
}
"""What differs in stage "joint" where a trained model learns a few more photos, in minutes on a CPU.

A third of the learning rate keeps what it knows, and the average is over as many steps as so short a run can spare.
"""


def stage_defaults(stage: StageName, *, fine_tuning: bool = False) -> dict[str, Any]:
    """The settings of a stage that differ from the defaults of :class:`TrainConfig`.

    fine_tuning: those of stage "joint" for a run that starts from a trained model, as ``--from`` does.
    """
    if fine_tuning and stage == "joint":
        return stage_defaults(stage) | FINE_TUNING
    if stage == "deepmask":
        return {"stage": stage, "model": ModelConfig(architecture="deepmask")}
    if stage == "sharpmask":
        # The released code runs plain gradient descent at a constant rate.
        constant: dict[str, Any] = {"milestones": (), "factors": ()}
        return {"stage": stage, "momentum": 0.0, "weight_decay": 0.0, "score_share": 0.0, **constant}
    return {
        "stage": stage,
        "model": SMALL,
        "trunk_weights": "imagenet",
        "frozen_stages": 3,
        "sampling": "dense",
        "steps": 5000,
        "optimizer": "adamw",
        "trunk_lr": 0.2,
        "weight_decay": 0.05,
        "schedule": "cosine",
        "milestones": (),
        "factors": (),
        "warmup": 200,
        "clip": 5.0,
        "ema": 0.998,
        "loss_scale": 1.0,
        "score_weight": 0.5,
        "dice": 0.5,
        "score_target": "soft",
    }

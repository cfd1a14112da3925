"""What each training stage learns: its settings, its parameters and its losses.

Stage "deepmask" learns the coarse mask and the score, stage "sharpmask" then the refinement with all else
frozen (section 3.3). Stage "joint" learns everything at once, for small trunks and small data.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from ..data.tiles import TileConfig
from ..models import DeepMask, ModelConfig, SharpMask

StageName = Literal["deepmask", "sharpmask", "joint"]

TERMS: dict[str, tuple[str, ...]] = {
    "deepmask": ("coarse", "score"),
    "sharpmask": ("refined",),
    "joint": ("coarse", "refined", "score"),
}
"""What each stage's loss is about."""

EPOCH = 4000
"""Batches in an epoch of the released code."""


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a training run. A YAML file and the command line set the same fields."""

    dataset: Path
    """Folder with images and a COCO instances file."""
    out: Path
    """Folder of the run: checkpoints, log and settings."""
    annotations: Path | None = None
    """COCO instances file of ``dataset``, where it is not found by itself."""
    stage: tyro.conf.Suppress[StageName] = "deepmask"
    model: Annotated[ModelConfig, tyro.conf.arg(name="")] = field(default_factory=ModelConfig)
    trunk_weights: str | None = None
    """"imagenet", or a file with a classifier's state_dict."""
    start_from: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Checkpoint to start from; its trunk and heads decide the model's."""
    validation: Path | None = None
    """Folder like ``dataset`` to measure on; without one nothing is measured during training."""
    validation_annotations: Path | None = None
    """COCO instances file of ``validation``, where it is not found by itself."""
    categories: tuple[str, ...] = ()
    """Train on objects of these categories only; empty for all."""
    skip_bad: bool = False
    """Leave out broken images and annotations, and count them, instead of stopping."""

    sampling: Literal["patches", "dense"] = "patches"
    """One window a patch (the paper), or many windows on each tile of a photo."""
    rule: Literal["paper", "released"] = "paper"
    """How patches are chosen: as the paper says, or as the released code does."""
    batch_size: int = 32
    """Patches a step."""
    score_share: float = 0.5
    """Share of patch batches that teach the score instead of the mask."""
    tiles: TileConfig = field(default_factory=TileConfig)

    steps: int = 300 * EPOCH
    """Batches to train on."""
    trained: Literal["stage", "all"] = "stage"
    """Parameters that learn: those of the stage, or all of the model (fine-tuning)."""
    frozen_stages: int = 0
    """Blocks of the trunk, from the image on, that never learn."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 1e-3
    """Learning rate before the schedule."""
    trunk_lr: float = 1.0
    """Factor on the trunk's learning rate."""
    momentum: float = 0.9
    weight_decay: float = 5e-5
    schedule: Literal["steps", "cosine"] = "steps"
    milestones: tuple[int, ...] = (50 * EPOCH, 120 * EPOCH)
    """Steps at which the schedule "steps" takes the next of ``factors``."""
    factors: tuple[float, ...] = (0.5, 0.1)
    """Learning rates after each milestone, as factors on ``lr``."""
    warmup: int = 0
    """Steps over which the learning rate rises from zero."""
    clip: float = 0.0
    """Largest norm of the gradient; 0 for no limit."""
    ema: float = 0.0
    """Decay of the weights' running average, which is what checkpoints hold; 0 for none."""

    loss_scale: float = 32.0
    """Factor on the whole loss: the released code sums mask losses over a batch of 32."""
    score_weight: float = 1 / 32
    """Weight of the score's loss (lambda in DeepMask, section 3)."""
    dice: float = 0.0
    """Weight of the dice loss beside the logistic loss of masks."""
    soft_scores: bool = False
    """Score target of a positive window: how good its mask is, clamp(1.1 IoU, .3, 1), instead of 1. Tiles only."""

    validate_every: int = 2 * EPOCH
    validation_samples: int = 512
    """Patches to measure on, of each kind."""
    save_every: int = 1000
    log_every: int = 50
    workers: int = 2
    """Processes that prepare batches; 0 for none."""
    threads: int = 0
    """CPU threads of PyTorch; 0 to leave its choice."""
    device: str = "cpu"
    seed: int = 1
    resume: bool = False
    """Go on with the run in ``out`` from its last saved step."""

    def __post_init__(self) -> None:
        if self.stage != "deepmask" and self.model.architecture != "sharpmask":
            raise ValueError(f"architecture must be 'sharpmask' in stage {self.stage!r}")
        if len(self.milestones) != len(self.factors):
            raise ValueError(f"factors must be {len(self.milestones)} numbers like milestones, got {self.factors}")
        for name in (
            "steps",
            "batch_size",
            "validate_every",
            "save_every",
            "log_every",
            "validation_samples",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


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
"""A model for CPUs: the one that comes with the package. Of two channels at the end both can die, of eight not."""


def stage_defaults(stage: StageName) -> dict[str, Any]:
    """Settings in which a stage differs from :class:`TrainConfig`'s own defaults."""
    if stage == "deepmask":
        return {"stage": stage, "model": ModelConfig(architecture="deepmask")}
    if stage == "sharpmask":
        # Plain gradient descent at a constant rate, as the released code runs it.
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
        "soft_scores": True,
    }


def freeze(model: DeepMask, config: TrainConfig) -> None:
    """Let learn what the stage trains, and nothing else."""
    alone = config.stage == "sharpmask" and config.trained == "stage"
    model.requires_grad_(not alone)
    if alone:
        assert isinstance(model, SharpMask)
        for parameter in model.refinement_parameters():
            parameter.requires_grad_(True)
    for block in model.trunk.stages()[: config.frozen_stages]:
        block.requires_grad_(False)


def parameter_groups(model: DeepMask, config: TrainConfig) -> list[dict[str, Any]]:
    """Learning parameters: the trunk's at ``trunk_lr`` times the rate of the others."""
    trunk = {id(p) for p in model.trunk.parameters()}
    learning = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learning if id(p) not in trunk], "factor": 1.0},
        {"params": [p for p in learning if id(p) in trunk], "factor": config.trunk_lr},
    ]
    return [g for g in groups if g["params"]]


def make_optimizer(model: DeepMask, config: TrainConfig) -> torch.optim.Optimizer:
    groups = parameter_groups(model, config)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of a step, counted from 0."""
    rate = config.lr * min(1.0, (step + 1) / (config.warmup + 1))
    if config.schedule == "cosine":
        return float(rate * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / config.steps))))
    passed = sum(step >= m for m in config.milestones)
    return rate * (config.factors[passed - 1] if passed else 1.0)

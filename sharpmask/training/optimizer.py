"""What a stage trains, and how: its parameters, the optimizer and the learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..errors import DataError
from ..models import DeepMask, SharpMask
from .stages import TrainConfig


def freeze(model: DeepMask, config: TrainConfig) -> None:
    """Freeze all parameters that ``config`` does not train. Raises ``DataError`` for stages that the trunk lacks."""
    stages = model.trunk.stages()
    if config.frozen_stages > len(stages):
        raise DataError(
            f"frozen_stages must be at most {len(stages)}, the stages of {model.trunk.name}, got {config.frozen_stages}"
        )
    alone = config.stage == "sharpmask" and config.trained == "stage"
    model.requires_grad_(not alone)
    if alone:
        assert isinstance(model, SharpMask)
        for parameter in model.refinement_parameters():
            parameter.requires_grad_(True)
    for block in stages[: config.frozen_stages]:
        block.requires_grad_(False)


def parameter_groups(model: DeepMask, config: TrainConfig) -> list[dict[str, Any]]:
    """The trained parameters in two groups: those of the trunk have the factor ``trunk_lr``, the others 1."""
    trunk = {id(p) for p in model.trunk.parameters()}
    learning = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learning if id(p) not in trunk], "factor": 1.0},
        {"params": [p for p in learning if id(p) in trunk], "factor": config.trunk_lr},
    ]
    return [g for g in groups if g["params"]]


def make_optimizer(model: DeepMask, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of the trained parameters. Each group holds its ``factor`` on the learning rate."""
    groups = parameter_groups(model, config)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate at a step, counted from 0, by warm-up and schedule."""
    rate = config.lr * min(1.0, (step + 1) / (config.warmup + 1))
    if config.schedule == "cosine":
        return rate * 0.5 * (1 + math.cos(math.pi * step / config.steps))
    passed = sum(step >= m for m in config.milestones)
    return rate * (config.factors[passed - 1] if passed else 1.0)

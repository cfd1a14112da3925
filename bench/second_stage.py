"""The time of a training step in SharpMask's second stage, with our kernels and with the reference."""

from __future__ import annotations

import copy
import functools
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sharpmask.models import SharpMask, from_config
from sharpmask.training.losses import mask_loss, patch_losses, total_loss
from sharpmask.training.optimizer import freeze, make_optimizer
from sharpmask.training.stages import TrainConfig, stage_defaults
from sharpmask_kernels import use_backend

from .measure import WrongResult
from .roofline import Cost, Peak
from .timing import cell, interleaved, milliseconds
from .workloads import FULL, SMALL


class Training(NamedTuple):
    """A SharpMask with a ResNet-50 trunk, ready to be trained."""

    model: SharpMask
    config: TrainConfig
    optimizer: torch.optim.Optimizer

    def step(self, backend: str, loss: Callable[[], Tensor]) -> float:
        """Forward, backward and descent. Returns the loss."""
        with use_backend(backend):
            value = loss()
            self.optimizer.zero_grad(set_to_none=True)
            value.backward()
        self.optimizer.step()
        return value.item()


def prepare() -> Training:
    config = TrainConfig(dataset=(Path(),), out=Path(), **stage_defaults("sharpmask"))
    torch.manual_seed(0)
    model = cast(SharpMask, from_config(config.model)).to(memory_format=torch.channels_last).train()
    freeze(model, config)
    return Training(model, config, make_optimizer(model, config))


def random_batch(training: Training, batch: int) -> dict[str, Any]:
    """Patches of noise, each with a mask of a few blobs."""
    model = training.model
    side, padded = model.config.window, model.config.window + model.config.context
    image = torch.rand(batch, 3, padded, padded)
    mask = (torch.rand(batch, 1, 5, 5) > 0.5).float()
    target = 2 * F.interpolate(mask, size=(side, side))[:, 0] - 1
    return {"kind": "mask", "image": image.contiguous(memory_format=torch.channels_last), "target": target}


def losses(training: Training, given: dict[str, Any]) -> dict[str, Callable[[], Tensor]]:
    """Of each kind of work, the function whose loss is descended."""
    model, config, _ = training
    with torch.no_grad():
        taps = model.taps(given["image"])
        code = model.patch_codes(taps)
    foreground = (given["target"] > 0).float()
    return {
        f"a whole step, batch {len(foreground)}": lambda: total_loss(patch_losses(model, given, config), config),
        "its refinement alone, features given": lambda: mask_loss(
            model.refine_patch(taps, code), foreground, config.dice
        ),
    }


def table(options: Namespace, conditions: str, peak: Peak | None) -> list[list[str]]:
    training = prepare()
    given = random_batch(training, (SMALL if options.small else FULL).batch)
    before = copy.deepcopy(training.model.state_dict())
    found = [[f"second stage, ResNet-50, {conditions}", "cpu", "of the peak", "reference", "times as fast"]]
    for work, loss in losses(training, given).items():
        runs = [functools.partial(training.step, backend, loss) for backend in ("cpu", "reference")]
        descents = []
        for run in runs:
            training.model.load_state_dict(before)
            descents.append([run(), run()])
        if not np.allclose(descents[0], descents[1], rtol=1e-4):
            raise WrongResult(f"losses of {work}: {descents[0]} on cpu, {descents[1]} on reference")
        with FlopCounterMode(display=False) as counter:
            runs[0]()
        ours, reference = interleaved(runs, options.rounds)
        needed = Cost(counter.get_total_flops(), 0)
        share = peak.share(needed, float(np.median(ours))) if peak else "-"
        found.append([work, milliseconds(ours), share, milliseconds(reference), cell(reference / ours)])
    return found

"""A run's batches: made in worker processes, brought to the device."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from ..data.coco import CocoFolder
from ..data.sampling import PatchBatches, PatchSampler
from ..data.tiles import TileBatches
from ..devices import to_device
from ..errors import DataError
from .processes import world_size
from .stages import TERMS, TrainConfig

COARSE_SHARE = 0.7
"""Side of the masks that coarse masks are trained on, as a share of the window's (112 of 160 in the released code)."""


def make_batches(folder: CocoFolder, config: TrainConfig, rank: int) -> Dataset[Any]:
    """Batches of patches or tiles by step, as ``config`` says, for the process ``rank``."""
    model = config.model
    if config.sampling == "dense":
        batches = TileBatches(folder, config.tiles, window=model.window, seed=config.seed, rank=rank)
        batches.check_objects()
        return batches
    shape: dict[str, Any] = {
        "window": model.window,
        "context": model.context,
        "rule": config.rule,
        "seed": config.seed,
    }
    side = model.window if "refined" in TERMS[config.stage] else round(model.window * COARSE_SHARE)
    return PatchBatches(
        PatchSampler(folder, head="mask", mask_size=side, **shape),
        PatchSampler(folder, head="score", **shape),
        batch_size=config.batch_size,
        score_share=config.score_share if "score" in TERMS[config.stage] else 0.0,
        seed=config.seed,
        rank=rank,
        world_size=world_size(),
    )


def load_batches(
    folder: CocoFolder, batches: Dataset[Any], steps: range, *, workers: int, device: torch.device
) -> Iterator[Any]:
    """The batches of ``steps`` in order, on ``device``.

    What the workers leave out of ``folder`` is added to its ``skipped``. Raises the ``DataError`` that stopped a
    batch.
    """
    # Workers only decode and sample: they call no kernel and need no threads of their own.
    loader = DataLoader(
        _Reporting(folder, batches),
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )
    skipped = folder.skipped
    for batch, lines in loader:
        skipped += [line for line in lines if line not in skipped]
        if isinstance(batch, DataError):
            raise batch
        yield to_device(batch, device)


class Waits(Iterator[Any]):
    """The batches of an iterator, and how long they were waited for.

    A GPU that is busy makes the host wait where losses are read, not here.
    """

    def __init__(self, batches: Iterator[Any]) -> None:
        self.batches = batches
        self._waited, self._since = 0.0, time.perf_counter()

    def __next__(self) -> Any:
        begun = time.perf_counter()
        try:
            return next(self.batches)
        finally:
            self._waited += time.perf_counter() - begun

    def share(self) -> float:
        """The share, in [0, 1], of the time since the last call that went by in waiting for batches."""
        now = time.perf_counter()
        share = self._waited / max(now - self._since, 1e-9)
        self._waited, self._since = 0.0, now
        return share


class _Reported(NamedTuple):
    batch: Any
    """A batch, or the ``DataError`` that stopped it."""
    skipped: list[str]
    """All that the process has left out so far."""


class _Reporting(Dataset[_Reported]):
    """Batches together with errors and skipped entries, which a worker process would otherwise lose."""

    def __init__(self, folder: CocoFolder, batches: Dataset[Any]) -> None:
        self.folder, self.batches = folder, batches

    def __getitem__(self, step: int) -> _Reported:
        try:
            return _Reported(self.batches[step], self.folder.skipped)
        except DataError as error:
            return _Reported(error, self.folder.skipped)

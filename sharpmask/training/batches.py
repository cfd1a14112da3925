"""A run's batches: made in worker processes, brought to the device."""

from __future__ import annotations

import signal
import time
import warnings
from collections.abc import Generator, Iterator
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ..data.coco import CocoFolder
from ..data.mixture import Mixture
from ..data.sampling import PatchBatches, PatchSampler
from ..data.tiles import TileBatches
from ..devices import to_device
from ..errors import DataError
from .stages import TERMS, TrainConfig

COARSE_SHARE = 0.7
"""Side of the masks that coarse masks are trained on, as a share of the window's (112 of 160 in the released code)."""


class Part(NamedTuple):
    """Which batches a process takes. A step has ``whole`` of them, one after the other in an endless sequence."""

    first: int
    """Place of its first one in each step."""
    own: int
    """How many it takes of each."""
    whole: int

    def of(self, steps: range) -> Iterator[int]:
        """Numbers in the sequence of the batches that the process takes in these steps, in order."""
        for step in steps:
            first = step * self.whole + self.first
            yield from range(first, first + self.own)


ALONE = Part(0, 1, 1)
"""One process with one batch in a step."""


def part_of(rank: int, processes: int, whole: int) -> Part:
    """The batches of process ``rank``, where each takes as many of the ``whole``. No two take the same one."""
    own = whole // processes
    return Part(rank * own, own, whole)


def make_batches(data: CocoFolder | Mixture, config: TrainConfig, together: int = 1) -> Dataset[Any]:
    """Batches of patches or tiles by number, as ``config`` says. A step takes ``together`` of them."""
    model = config.model
    if config.sampling == "dense":
        batches = TileBatches(data, config.tiles, window=model.window, seed=config.seed)
        batches.check_objects()
        return batches
    shape: dict[str, Any] = {
        "window": model.window,
        "context": model.context,
        "rule": config.rule,
        "seed": config.seed,
        "mask_size": model.window if "refined" in TERMS[config.stage] else round(model.window * COARSE_SHARE),
    }
    score_share = config.score_share if "score" in TERMS[config.stage] else 0.0
    scores: dict[str, Any] = {**shape, "head": "score", "score_masks": config.score_target != "hard"}
    return PatchBatches(
        PatchSampler(data, head="mask", **shape),
        PatchSampler(data, **scores) if score_share else None,
        batch_size=config.batch_size,
        score_share=score_share,
        seed=config.seed,
        together=together,
    )


def load_batches(
    data: Mixture,
    batches: Dataset[Any],
    steps: range,
    *,
    workers: int,
    device: torch.device,
    part: Part = ALONE,
) -> Generator[list[Any], None, None]:
    """The batches of ``steps`` in order, on ``device``: of each step those of ``part``.

    Closing the generator ends the workers. Nothing else does, as they pass over SIGTERM.

    What the workers leave out of ``data`` is added to its ``skipped``. Raises the ``DataError`` that stopped a
    batch.
    """
    with warnings.catch_warnings():
        # PyTorch's remark, of five lines, on more workers than cores. The progress bar says whether there are enough.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        # Workers only decode and sample: they call no kernel and need no threads of their own.
        loaded = iter(
            DataLoader(
                _Reporting(data, batches),
                batch_size=None,
                sampler=part.of(steps),
                num_workers=workers,
                pin_memory=device.type == "cuda",
                worker_init_fn=_begin_worker,
            )
        )

    def moved() -> Iterator[Any]:
        for batch, lines in loaded:
            for line in lines:
                data.leave_out(line)
            if isinstance(batch, DataError):
                raise batch
            yield to_device(batch, device)

    found = moved()
    while step := list(islice(found, part.own)):
        yield step


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
    """What the process has left out since its last batch."""


class _Reporting(Dataset[_Reported]):
    """Batches together with errors and skipped entries, which a worker process would otherwise lose."""

    def __init__(self, data: Mixture, batches: Dataset[Any]) -> None:
        self.data, self.batches = data, batches
        self._told = len(data.skipped)

    def __getitem__(self, number: int) -> _Reported:
        batch: Any
        try:
            batch = self.batches[number]
        except DataError as error:
            batch = error
        new = self.data.skipped[self._told :]
        self._told += len(new)
        return _Reported(batch, new)


def _begin_worker(number: int) -> None:
    """Let the worker outlive SIGTERM, and make the caches of all together as large as that of one process.

    torchrun and schedulers send the signal to a whole run, which saves its state first, and then ends its workers.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    worker = get_worker_info()
    if worker is not None and isinstance(worker.dataset, _Reporting):
        worker.dataset.data.share_cache(worker.num_workers)

"""What ``python -m bench.compare --headline`` prints: our kernels against the best peer, and the memory they take."""

from __future__ import annotations

import copy
import functools
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sharpmask.models import SharpMask, from_config
from sharpmask.training.losses import mask_loss, patch_losses, total_loss
from sharpmask.training.stages import TrainConfig, freeze, make_optimizer, stage_defaults
from sharpmask_kernels import use_backend

from . import memory
from .measure import DTYPES, Setting, WrongResult
from .peers import PEERS, contestants
from .timing import cell, interleaved, milliseconds, seconds
from .workloads import FULL, LEVELS, SMALL, Sizes, Workload, encode_windows, refine_all, refine_windows, refinement

HOPELESS = 2.0
"""Peers that took so many times as long as the best at first are timed no more."""


class Row(NamedTuple):
    work: str
    workload: Workload
    rival: Workload
    """What the peers compute, where it is not quite the same."""
    peers: frozenset[str] | None = None
    """Those that are measured; None: all."""


def rows(sizes: Sizes) -> Iterator[Row]:
    few, many = sizes.windows[0], sizes.windows[-1]
    for count, threshold in ((many, None), (many, 0.2), (few, None)):
        ours = refine_windows(count, sizes.photo, threshold=threshold)
        # Padding with zeros is what peers do at less cost.
        rival = refine_windows(count, sizes.photo, "zeros", threshold)
        yield Row(f"refine_windows, {count} windows, {'fp32 logits' if threshold is None else 'bits'}", ours, rival)
    encode = encode_windows(many, sizes.photo)
    yield Row(f"encode_windows, {many} windows, against crops", encode, encode, frozenset({"eager", "crop-first"}))
    yield Row(f"encode_windows, {many} windows, against full-size masks", encode, encode, frozenset({"full-size"}))
    every = refine_all(sizes.batch)
    works = {f"level {level}": refinement("refine", level - 1, sizes.batch) for level in (4, 3, 2, 1)}
    works |= {"all levels": every, "all levels, features of 64 channels": refine_all(sizes.batch, 64)}
    for work, workload in works.items():
        yield Row(f"refine, {work}, forward", workload, workload)
    features = frozenset(range(1, 1 + len(LEVELS)))
    for work, fixed in (("features frozen", features), ("all trained", frozenset())):
        workload = every._replace(training=True, frozen=fixed)
        yield Row(f"refine, all levels, forward and backward, {work}", workload, workload)


def table(options: Namespace) -> Iterator[list[str]]:
    """The table's header, then row by row."""
    yield ["work", "ours", "times as fast as the best peer", "best peer", "as the others"]
    for row in rows(SMALL if options.small else FULL):
        if row.workload.op in (options.op or [row.workload.op]):
            yield measured(row, options)


def measured(row: Row, options: Namespace) -> list[str]:
    kind = DTYPES[options.dtype], torch.device(options.device)
    ready = Setting(row.workload, *kind)
    # Both first: a new setting forgets what was compiled.
    rival = ready if row.rival is row.workload else Setting(row.rival, *kind)
    ours, peers = {}, {}
    found, _ = contestants(row.rival, *kind, options.peer or PEERS)
    for contestant in found:
        if contestant.backend == "reference":
            continue
        if contestant.backend:
            ours[contestant.name] = ready.runner(contestant)
        elif row.peers is None or contestant.name in row.peers:
            try:
                peers[contestant.name] = rival.runner(contestant)
            except Exception as error:  # who does not take this module, or gives another result, is no peer
                print(f"{contestant.name} fails on {row.work}: {str(error).splitlines()[0]}", flush=True)
    runs = ours | peers
    # A first look at all; peers that are far behind the best then rest.
    times = {name: np.array([seconds(run)]) for name, run in runs.items()}
    limit = HOPELESS * min(times[name][0] for name in peers)
    close = [name for name in runs if name in ours or times[name][0] <= limit]
    times |= zip(close, interleaved([runs[name] for name in close], options.rounds), strict=True)
    fastest = min(ours, key=lambda name: np.median(times[name]))
    ratios = {name: times[name] / (times[fastest] if name in close else np.median(times[fastest])) for name in peers}
    best, *others = sorted(ratios, key=lambda name: np.median(ratios[name]))
    return [
        row.work,
        f"{milliseconds(times[fastest])} ({fastest})",
        cell(ratios[best]),
        best,
        ", ".join(f"{name} {np.median(ratios[name]):.2f}" for name in others),
    ]


def memory_table(options: Namespace) -> list[list[str]]:
    """What one call takes beyond its inputs and outputs, and what a training step keeps; of the cpu backend, fp32."""
    sizes = SMALL if options.small else FULL
    count, threads = sizes.windows[-1], torch.get_num_threads()
    found = [["memory", "ours", "eager PyTorch"]]
    extras = [f"{extra_of_refine_windows(count, sizes.photo, name) / 1e6:.2f} MB" for name in ("cpu", None)]
    found.append([f"refine_windows, {count} windows, beyond its output, {threads} threads", *extras])
    kept = [f"{saved_by_refine(sizes.batch, name) / 1e6:.2f} MB" for name in ("cpu", None)]
    found.append([f"refine, all levels, batch {sizes.batch}, kept for backward beyond inputs and parameters", *kept])
    return found


def extra_of_refine_windows(count: int, photo: tuple[int, int], backend: str | None) -> int:
    """Bytes that one call takes beyond its output; of plain PyTorch without a ``backend``."""
    workload = refine_windows(count, photo)
    module = workload.module(torch.device("cpu")).requires_grad_(False)
    inputs = workload.inputs(torch.randn)

    def run() -> object:
        return module.op(backend, *inputs) if backend else module(*inputs)

    run()  # allocates the output
    return max(memory.extra(run) for _ in range(3))


def saved_by_refine(batch: int, backend: str | None) -> int:
    """Bytes that the four modules keep for their backward; of plain PyTorch without a ``backend``."""
    kept = 0
    for level in range(len(LEVELS)):
        workload = refinement("refine", level, batch)
        module = workload.module(torch.device("cpu"))
        inputs = [x.requires_grad_() for x in workload.inputs(torch.randn)]
        run = functools.partial(module.op, backend) if backend else module
        kept += memory.saved(functools.partial(run, *inputs), [*inputs, *module.parameters()])
    return kept


def training_table(options: Namespace) -> list[list[str]]:
    """A whole step of SharpMask's second stage with a ResNet-50 trunk: forward, backward, descent."""
    config = TrainConfig(dataset=Path(), out=Path(), **stage_defaults("sharpmask"))
    torch.manual_seed(0)
    model = cast(SharpMask, from_config(config.model)).to(memory_format=torch.channels_last).train()
    freeze(model, config)
    optimizer = make_optimizer(model, config)
    batch, side = (SMALL if options.small else FULL).batch, config.model.window
    image = torch.rand(batch, 3, side + config.model.context, side + config.model.context)
    mask = (torch.rand(batch, 1, 5, 5) > 0.5).float()
    target = 2 * F.interpolate(mask, size=(side, side))[:, 0] - 1
    given: dict[str, Any] = {
        "kind": "mask",
        "image": image.contiguous(memory_format=torch.channels_last),
        "target": target,
    }

    with torch.no_grad():
        taps = model.taps(image)
        code = model.patch_codes(taps)

    def refinement_alone() -> Tensor:
        return mask_loss(model.refine_patch(taps, code), (target > 0).float(), config.dice)

    def step(backend: str, loss: Callable[[], Tensor]) -> float:
        with use_backend(backend):
            value = loss()
            optimizer.zero_grad(set_to_none=True)
            value.backward()
        optimizer.step()
        return value.item()

    works = {
        f"a whole step, batch {batch}": lambda: total_loss(patch_losses(model, given, config), config),
        "its refinement alone, features given": refinement_alone,
    }
    found = [["second stage", "cpu", "reference", "times as fast"]]
    before = copy.deepcopy(model.state_dict())
    for work, loss in works.items():
        runs = [functools.partial(step, backend, loss) for backend in ("cpu", "reference")]
        losses = []
        for run in runs:
            model.load_state_dict(before)
            losses.append([run(), run()])
        if not np.allclose(losses[0], losses[1], rtol=1e-4):
            raise WrongResult(f"losses of {work}: {losses[0]} on cpu, {losses[1]} on reference")
        ours, reference = interleaved(runs, options.rounds)
        found.append([work, milliseconds(ours), milliseconds(reference), cell(reference / ours)])
    return found

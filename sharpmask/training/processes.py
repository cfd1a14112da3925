"""Several processes of one run, as torchrun starts them: their group, devices and shared gradients."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from ..devices import usable_device
from ..errors import DataError


@contextmanager
def process_group() -> Iterator[int]:
    """Join the processes that torchrun started, if it did, and leave them at the end. Gives this one's rank."""
    started = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    if started:
        dist.init_process_group()
    try:
        yield dist.get_rank() if dist.is_initialized() else 0
    finally:
        if started:
            dist.destroy_process_group()


def world_size() -> int:
    """The number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def own_device(name: str) -> torch.device:
    """The device called ``name``; of several processes that ask for "cuda" each gets the GPU of its own number.

    Raises ``DataError`` if it cannot be used.
    """
    if name == "cuda" and dist.is_initialized():
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return usable_device(name)


def average_gradients(parameters: Sequence[Tensor], device: torch.device) -> None:
    """Replace the gradients by their mean over all processes; does nothing without a process group.

    A gradient that a process lacks counts as zero. A parameter without a gradient in any process keeps none, so
    that the optimizer skips it as it does in a single process. Raises ``DataError`` if another process has ended.
    """
    if not dist.is_initialized():
        return
    touched = torch.tensor([float(p.grad is not None) for p in parameters], device=device)
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = torch.cat([touched, *(g.flatten() for g in grads)])
    try:
        dist.all_reduce(flat)
    except RuntimeError as error:
        raise DataError(f"training: another process has ended: {str(error).splitlines()[0]}") from error
    flat /= dist.get_world_size()
    touched, *shared = flat.split([len(grads), *(g.numel() for g in grads)])
    for p, t, g in zip(parameters, touched.tolist(), shared, strict=True):
        p.grad = g.view(p.shape) if t else None

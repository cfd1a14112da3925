"""Several processes of one run, as torchrun starts them: their group, devices and shared gradients.

PyTorch's DistributedDataParallel is not used. It takes the mean over processes, which is not the mean over their
windows, of which each has another number. Which heads a batch is about changes from step to step, so it would have to
look for parameters without a gradient, and it reads from the GPU which these are. And it wants a model with one entry,
``forward``. What it could add is to send gradients while the backward pass still runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from ..devices import usable_device
from ..errors import DataError


@contextmanager
def process_group() -> Iterator[int]:
    """Join the processes that torchrun started, if it did, and leave them at the end. Gives this one's rank."""
    started = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    if started:
        _join()
    try:
        yield dist.get_rank() if dist.is_initialized() else 0
    finally:
        if started:
            dist.destroy_process_group()


def _join() -> None:
    """Join the group. After a restart torchrun's store still has the addresses of the processes that are gone."""
    store, rank, size = next(rendezvous("env://"))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    # Without the name of a backend, numbers in memory go by Gloo, and those on GPUs by NCCL.
    dist.init_process_group(store=dist.PrefixStore(f"attempt {attempt}", store), rank=rank, world_size=size)


def world_size() -> int:
    """The number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def own_device(name: str) -> torch.device:
    """The device called ``name``; of several processes that ask for "cuda" each gets the GPU of its own number.

    Raises ``DataError`` if it cannot be used.
    """
    if name == "cuda" and dist.is_initialized():
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    device = usable_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # Otherwise each process takes memory of the first GPU, too.
    return device


def sum_counts(counts: Iterable[int]) -> list[int]:
    """The sums over all processes of numbers that each host knows. No process waits for its GPU."""
    own = np.array(list(counts), np.int64)
    if dist.is_initialized():
        _sum(torch.from_numpy(own))
    return [int(number) for number in own]


def sum_gradients(parameters: Sequence[Tensor], values: Tensor) -> Tensor:
    """Replace the gradients by their sum over all processes. Returns the sum of ``values``, a vector, too.

    A gradient that a process lacks counts as zero. A parameter without a gradient in any process keeps none, so
    that the optimizer skips it as it does in a single process. Raises ``DataError`` if another process has ended.
    """
    if not dist.is_initialized():
        return values
    having = sum_counts(p.grad is not None for p in parameters)
    touched = [p for p, processes in zip(parameters, having, strict=True) if processes]
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in touched]
    flat = torch.cat([values, *(g.flatten() for g in grads)])
    _sum(flat)
    summed, *shared = flat.split([len(values), *(g.numel() for g in grads)])
    for p, g in zip(touched, shared, strict=True):
        p.grad = g.view(p.shape)
    return summed


def share_weights(model: nn.Module) -> None:
    """Give all processes the parameters and buffers that the first one has."""
    if dist.is_initialized():
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, 0)


def check_agreement(rank: int, values: dict[str, int]) -> None:
    """Raise ``DataError`` in all processes if one has other values, numbers below 2**63, than the first one."""
    for name, own in values.items() if dist.is_initialized() else ():
        table = [0] * world_size()
        table[rank] = own
        table = sum_counts(table)
        for other, value in enumerate(table):
            if value != table[0]:
                raise DataError(
                    f"training: the {name} must be the same in all processes, got {table[0]} in process 0 and {value} "
                    f"in process {other}; give all the same settings and data, and an --out that all machines share"
                )


def _sum(tensor: Tensor) -> None:
    """Replace a tensor by its sum over all processes."""
    try:
        dist.all_reduce(tensor)
    except RuntimeError as error:
        raise DataError(f"training: another process has ended: {str(error).splitlines()[0]}") from error

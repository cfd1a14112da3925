"""Who is measured: plain PyTorch, other ways to run plain PyTorch, and the backends."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sharpmask_kernels import dispatch

from . import tensorrt_peer
from .plain import Plain
from .workloads import Workload

Function = Callable[..., Any]
Prepare = Callable[[Plain, tuple[Tensor, ...]], Function]
"""Of a module, and inputs as an example: a function that computes the same from such inputs."""


@dataclass(frozen=True)
class Contestant:
    name: str
    prepare: Prepare
    channels_last: bool = False
    """The memory format of the inputs and parameters that it gets."""


@dataclass(frozen=True)
class Peer:
    prepare: Prepare
    obstacle: Callable[[Plain, bool], str | None]
    """Why it cannot run a module, given whether gradients are due, or None."""


def _compile(module: Plain, example: tuple[Tensor, ...]) -> Function:
    # What was compiled earlier counts towards a limit, beyond which PyTorch would go on uncompiled.
    torch.compiler.reset()
    compiled: Function = torch.compile(module, fullgraph=True, dynamic=False)
    return compiled


def _compile_obstacle(module: Plain, training: bool) -> str | None:
    return None if module.traceable else "plain PyTorch loops over the windows, each of which would be compiled"


EAGER = Contestant("eager", lambda module, example: module)

PEERS = {
    "compile": Peer(_compile, _compile_obstacle),
    "tensorrt": Peer(tensorrt_peer.prepare, tensorrt_peer.obstacle),
}
"""What is measured on request, beside eager PyTorch."""


def contestants(
    workload: Workload, dtype: torch.dtype, device: torch.device, peers: Iterable[str]
) -> tuple[list[Contestant], dict[str, str]]:
    """Eager PyTorch, then the ``peers`` asked for and every backend that has the op; and who is left out, and why.

    Where the inputs are maps, each is there twice: for contiguous and for channels_last ("-nhwc") maps.
    """
    found, left_out = [EAGER], {}
    module = workload.module(torch.device("cpu"))
    for name in peers:
        if reason := PEERS[name].obstacle(module, workload.training):
            left_out[name] = reason
        else:
            found.append(Contestant(name, PEERS[name].prepare))
    for name in dispatch.BACKENDS:
        if not dispatch.has(name, workload.op):
            continue
        if reason := backend_obstacle(name, workload.op, dtype, device):
            left_out[name] = reason
        else:
            found.append(Contestant(name, _prepare_op(name)))
    if module.maps:
        found = [c for one in found for c in (one, replace(one, name=f"{one.name}-nhwc", channels_last=True))]
    return found, left_out


def _prepare_op(backend: str) -> Prepare:
    return lambda module, example: lambda *inputs: module.op(backend, *inputs)


def backend_obstacle(name: str, op: str, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why a backend is not measured on such inputs, or None."""
    try:
        dispatch.choose(op, torch.empty(0, dtype=dtype, device=device), name)
    except (ValueError, RuntimeError) as error:
        return str(error)
    # On the CPU the CUDA kernels' threads are emulated, for tests.
    if device.type == "cpu" and (name == "cuda" or getattr(dispatch.module(name), "INTERPRETED", False)):
        return "its kernels are interpreted here, so their times say nothing about them"
    return None

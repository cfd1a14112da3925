"""Who is measured: plain PyTorch, other ways to run it, and the backends."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sharpmask.search.engines.core import core
from sharpmask_kernels import dispatch, registry

from . import isa, tensorrt_peer
from .workloads.base import Function, Plain, Transform, Workload

Prepare = Callable[[Plain, tuple[Tensor, ...]], Function]
"""Takes a module and example inputs, and gives a function that computes the same from such inputs."""


@dataclass(frozen=True)
class Contestant:
    name: str
    prepare: Prepare
    channels_last: bool = False
    """Whether its inputs and parameters are channels_last, not contiguous."""
    rounds: bool = False
    """Whether its masks are only nearly right."""
    backend: str | None = None


@dataclass(frozen=True)
class Peer:
    """Another way to run the layers of a plain module."""

    transform: Transform
    obstacle: Callable[[Plain, bool], str | None]
    """Takes a module and whether gradients are computed, and says why it cannot run the module, or None."""
    channels_last: bool = True
    """Whether its speed depends on the memory format of its inputs."""
    any_kind: bool = True
    """Whether it takes all dtypes and devices, not only fp32 on the CPU."""


def _obstacle(module: Plain, training: bool, *, package: str = "torch", gradients: bool = False) -> str | None:
    if not module.traceable:
        return "there are no layers to run, only a loop over windows"
    if training and not gradients:
        return "it computes no gradients"
    return None if importlib.util.find_spec(package) else f"{package} is not installed"


def compiled(module: nn.Module, example: tuple[Tensor, ...], **options: Any) -> Function:
    function: Function = torch.compile(module, fullgraph=True, dynamic=False, **options)
    return function


def frozen(module: nn.Module, example: tuple[Tensor, ...]) -> Function:
    """Parameters are constants. The compiler brings them into the layout that suits the convolutions."""
    return torch.no_grad()(compiled(module.eval(), example, options={"freezing": True}))


def exported(module: nn.Module, example: tuple[Tensor, ...]) -> bytes:
    """The module in ONNX."""
    program = torch.onnx.export(module.eval(), example, dynamo=True, verbose=False)
    assert program is not None
    return program.model_proto.SerializeToString()


def onnxruntime(module: nn.Module, example: tuple[Tensor, ...]) -> Function:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.force_spinning_stop", "1")  # or its threads wait busily while others run
    session = ort.InferenceSession(exported(module, example), options, providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs()]
    out = module(*example).clone()  # written by every call
    binding = session.io_binding()

    def bind(bound: Callable[..., None], name: str, x: Tensor) -> None:
        bound(name, "cpu", 0, x.numpy().dtype, tuple(x.shape), x.data_ptr())

    bind(binding.bind_output, session.get_outputs()[0].name, out)

    def run(*inputs: Tensor) -> Tensor:
        ready = [x.contiguous() for x in inputs]  # held until the call is over
        for name, x in zip(names, ready, strict=True):
            bind(binding.bind_input, name, x)
        session.run_with_iobinding(binding)
        return out

    return run


def openvino(module: nn.Module, example: tuple[Tensor, ...]) -> Function:
    import openvino as ov

    config = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",  # else bf16, where the machine has it
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core().compile_model(core().read_model(exported(module, example)), "CPU", config).create_infer_request()
    out = module(*example).clone()  # written by every call
    request.set_output_tensor(ov.Tensor(out.numpy(), shared_memory=True))

    def run(*inputs: Tensor) -> Tensor:
        ready = [x.contiguous() for x in inputs]  # held until the call is over
        for i, x in enumerate(ready):
            request.set_input_tensor(i, ov.Tensor(x.numpy(), shared_memory=True))
        request.infer()
        return out

    return run


EAGER = Contestant("eager", lambda module, example: module)

PEERS = {
    "compile": Peer(compiled, functools.partial(_obstacle, gradients=True)),
    "compile-freezing": Peer(frozen, _obstacle),
    "compile-max-autotune": Peer(
        functools.partial(compiled, mode="max-autotune"), functools.partial(_obstacle, gradients=True)
    ),
    "onnxruntime": Peer(onnxruntime, functools.partial(_obstacle, package="onnxruntime"), False, False),
    "openvino": Peer(openvino, functools.partial(_obstacle, package="openvino"), False, False),
    "tensorrt": Peer(tensorrt_peer.prepare, tensorrt_peer.obstacle),
}
"""What is measured on request, besides eager PyTorch."""


def contestants(
    workload: Workload, dtype: torch.dtype, device: torch.device, peers: Iterable[str]
) -> tuple[list[Contestant], dict[str, str]]:
    """Eager PyTorch, the ``peers`` asked for, and every backend that has the op. Then who is left out, with the reason.

    Where the inputs are maps, each comes twice: with contiguous and with channels_last ("-nhwc") maps. Where the plain
    module takes its batch in parts, so does each that is not ours, and once more with the "-whole" batch.
    """
    module = workload.module(torch.device("cpu"))
    left_out = {}
    found = variants(EAGER, module, module.maps)
    for name in peers:
        peer = PEERS[name]
        if reason := peer.obstacle(module, workload.training):
            left_out[name] = reason
        elif not peer.any_kind and (dtype, device.type) != (torch.float32, "cpu"):
            left_out[name] = "it is set up for fp32 on the CPU here"
        else:
            found += variants(Contestant(isa.tell(name), _prepare_peer(peer)), module, peer.channels_last)
    if peers:
        found += [Contestant(name, _prepare_variant(name), rounds=True) for name in module.variants()]
    for name in registry.BACKENDS:
        if not registry.backend(name).has(workload.op):
            continue
        if reason := backend_obstacle(name, workload.op, dtype, device):
            left_out[name] = reason
        else:
            found += both_formats(Contestant(name, prepare_op(name), backend=name), module.maps)
    return found, left_out


def variants(contestant: Contestant, module: Plain, both: bool) -> list[Contestant]:
    batches = [contestant]
    if module.in_parts:

        def prepare(module: Plain, example: tuple[Tensor, ...]) -> Function:
            return contestant.prepare(module.whole(), example)

        batches.append(replace(contestant, name=f"{contestant.name}-whole", prepare=prepare))
    return [variant for batch in batches for variant in both_formats(batch, both)]


def both_formats(contestant: Contestant, both: bool) -> list[Contestant]:
    return [contestant, replace(contestant, name=f"{contestant.name}-nhwc", channels_last=True)][: 1 + both]


def _prepare_peer(peer: Peer) -> Prepare:
    return lambda module, example: module.through(peer.transform, example)


def _prepare_variant(name: str) -> Prepare:
    return lambda module, example: module.variants()[name]


def prepare_op(backend: str) -> Prepare:
    return lambda module, example: lambda *inputs: module.op(backend, *inputs)


def backend_obstacle(name: str, op: str, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why a backend is not measured on such inputs, or None."""
    try:
        dispatch.choose(op, torch.empty(0, dtype=dtype, device=device), name)
    except (ValueError, RuntimeError) as error:
        return str(error)
    if device.type == "cpu" and registry.backend(name).simulated():
        return "its kernels are interpreted or emulated here, so their times say nothing about them"
    return None

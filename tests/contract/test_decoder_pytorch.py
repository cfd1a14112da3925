"""upsample_merge and upsample_add are at home in PyTorch: opcheck, autocast, compilers, export, transforms, flops."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import sharpmask_kernels as kernels

from .inputs import Random, channels_last, contiguous, sliced
from .subjects import Subject, each
from .test_decoder import MIXED, OPS, Options, arguments, filled, leaves, plain, tensors
from .test_flops import forward_and_backward
from .test_pytorch import fresh_compiler  # noqa: F401
from .test_transforms import (
    WAYS,
    by_batched_gradients,
    by_dual_numbers,
    by_forward_over_reverse,
    by_grad,
    by_jvp,
    by_vmap,
)

pytestmark = pytest.mark.grid(whole=False)

FORMATS = pytest.mark.parametrize("layout", [contiguous, channels_last, sliced])
WIDTHS = pytest.mark.parametrize("widths", [(3, 2, 4), (3, 0, 4)])


def given(
    subject: Subject, layout: Callable[[Tensor], Tensor] = contiguous, grad: bool = True, widths: Any = (3, 2, 4)
) -> list[Tensor | None]:
    random = Random(torch.float32, seed=3, device=subject.device)
    found = arguments(subject.op, random, (2, 3, 4), widths)
    maps = [x if x is None or x.ndim != 4 or i > 1 else layout(x) for i, x in enumerate(found)]
    return [None if x is None else x.detach().requires_grad_(grad) for x in maps]


def flat(op: str, options: Options) -> tuple[Any, ...]:
    """The options as the op's schema has them."""
    return tuple(options) if op == "upsample_merge" else (options.upsample, options.activation)


@each(*OPS)
@FORMATS
@WIDTHS
@pytest.mark.parametrize("options", [o for o in MIXED if o.activation != "silu"], ids=str)
@pytest.mark.parametrize("grad", [True, False])
def test_opcheck(subject: Subject, layout: Any, widths: Any, options: Options, grad: bool) -> None:
    op = getattr(torch.ops.sharpmask, subject.op).default
    inputs = given(subject, layout, grad, widths)
    torch.library.opcheck(op, (*inputs, *flat(subject.op, options), subject.backend))


@each(*OPS)
@FORMATS
@WIDTHS
@pytest.mark.parametrize("options", [o for o in MIXED if o.activation != "silu"], ids=str)
def test_opcheck_backward(subject: Subject, layout: Any, widths: Any, options: Options) -> None:
    inputs = given(subject, layout, grad=False, widths=widths)
    out = getattr(torch.ops.sharpmask, subject.op)(*inputs, *flat(subject.op, options), subject.backend)
    kept = None if options.activation == "none" else out
    maps = inputs[:3] if subject.op == "upsample_merge" else []
    op = getattr(torch.ops.sharpmask, f"{subject.op}_backward").default
    for needs in ([x is not None for x in inputs], [i % 2 == 0 for i in range(len(inputs))]):
        last = (layout is channels_last, needs, subject.backend)
        torch.library.opcheck(op, (layout(torch.ones_like(out)), kept, *maps, *flat(subject.op, options), *last))


@each(*OPS)
def test_silu_keeps_its_argument_outside_of_the_op(subject: Subject) -> None:
    """The schema's op has no gradient for it, and says so."""
    inputs = given(subject)
    out = getattr(torch.ops.sharpmask, subject.op)(
        *inputs, *flat(subject.op, Options(activation="silu")), subject.backend
    )
    with pytest.raises(NotImplementedError, match="the gradient of silu needs more than its result"):
        out.sum().backward()


@each(*OPS)
def test_double_backward_is_refused(subject: Subject) -> None:
    inputs = given(subject)
    out = subject(*inputs, activation="elu")
    gradients = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match=f"{subject.op} has no second derivative"):
        gradients[0].sum().backward()


# Autocast: as the plain layers behave.


@each(*OPS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(subject: Subject, dtype: torch.dtype) -> None:
    inputs = [x.detach().abs().requires_grad_() for x in tensors(given(subject))]
    with torch.autocast(subject.device, dtype=dtype):
        out = subject(*inputs)
        assert out.dtype == (torch.float32 if subject.op == "upsample_add" else dtype)
        # A map that a convolution made under autocast, and an fp32 one.
        half = subject(inputs[0].to(dtype), *inputs[1:])
        assert half.dtype == out.dtype
    out.sum().backward()
    expected = [x.detach().clone().requires_grad_() for x in inputs]
    subject(*expected).sum().backward()
    for x, y in zip(inputs, expected, strict=True):
        assert x.grad is not None and y.grad is not None
        assert x.grad.dtype == torch.float32
        torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=0.03 * float(y.grad.abs().max()))


@each(*OPS)
def test_autocast_leaves_double_precision_alone(subject: Subject) -> None:
    if not subject.takes(torch.float64):
        return
    inputs = [x.detach().double() for x in tensors(given(subject))]
    expected = subject(*inputs)
    with torch.autocast(subject.device, dtype=torch.bfloat16):
        out = subject(*inputs)
    assert out.dtype == torch.float64
    assert torch.equal(out, expected)


# torch.compile.


@each(*OPS)
@pytest.mark.parametrize("options", MIXED[1:5], ids=str)
def test_compile(subject: Subject, options: Options) -> None:
    """One graph, whatever the height, width and batch; gradients too."""
    counter = CompileCounterWithBackend("aot_eager")
    run = functools.partial(subject.function, **options.of(subject.op))
    compiled = torch.compile(lambda *x: run(*x), fullgraph=True, dynamic=True, backend=counter)
    sizes = ((2, 2, 3), (3, 3, 4)) if subject.interpreted else ((6, 11, 13), (7, 19, 10), (2, 10, 29))
    for size in sizes:
        found = leaves(arguments(subject.op, Random(torch.float32, device=subject.device), size, (3, 2, 4)))
        expected = leaves(found)
        out, direct = compiled(*found), run(*expected)
        torch.testing.assert_close(out, direct)
        out.square().sum().backward()
        direct.square().sum().backward()
        for x, y in zip(found, expected, strict=True):
            torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=1e-5 * float(y.grad.abs().max()))
    assert counter.frame_count == 1


class Decoder(nn.Module):
    """Two levels of a U-Net's decoder, the second without a skip, and one of a pyramid."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(7, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 3, 3, padding=1, bias=False)

    def forward(self, mask: Tensor, skip: Tensor, lateral: Tensor) -> Tensor:
        x = kernels.upsample_merge(mask, skip, self.first.weight, self.first.bias, mask_first=False, activation="elu")
        y = kernels.upsample_merge(x, None, self.second.weight, upsample="bilinear", padding_mode="replicate")
        corners = {"upsample": "bilinear_corners"}
        return kernels.upsample_merge(
            kernels.upsample_add(y, lateral, activation="silu", **corners),
            None,
            self.second.weight.transpose(0, 1),
            activation="leaky_relu",
            **corners,
        )


def decoder_inputs(height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    random = Random(torch.float32, seed=height)
    shapes = ((2, 5, height, width), (2, 2, 2 * height, 2 * width), (2, 3, 8 * height, 8 * width))
    return random(*shapes[0]), random(*shapes[1]), random(*shapes[2])


def test_compile_a_model_with_inductor() -> None:
    model = Decoder().eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for size in ((3, 4), (5, 2)):
            torch.testing.assert_close(compiled(*decoder_inputs(*size)), model(*decoder_inputs(*size)))


# torch.export, ONNX, TorchScript: plain PyTorch operations, which need nothing from here.


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict: bool) -> None:
    model = Decoder().eval()
    exported = torch.export.export(model, decoder_inputs(3, 4), strict=strict)
    assert not [node for node in exported.graph.nodes if "sharpmask" in str(node.target)]
    torch.testing.assert_close(exported.module()(*decoder_inputs(3, 4)), model(*decoder_inputs(3, 4)))


def test_onnx(tmp_path: Path) -> None:
    model, inputs = Decoder().eval(), decoder_inputs(3, 4)
    program = torch.onnx.export(model, inputs, dynamo=True, verbose=False)
    assert program is not None
    program.save(tmp_path / "decoder.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "decoder.onnx")
    feeds: dict[str, Any] = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
    with torch.no_grad():
        expected = model(*inputs).numpy()
    np.testing.assert_allclose(session.run(None, feeds)[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*deprecated:FutureWarning")
def test_jit_trace() -> None:
    model = Decoder().eval()
    # The check of a second trace takes the mangled names of two convolutions for a difference.
    traced = torch.jit.trace(model, decoder_inputs(3, 4), check_trace=False)
    assert "sharpmask::" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(*decoder_inputs(3, 4)), model(*decoder_inputs(3, 4)))


# Derivatives of other kinds, and vmap.


def transformed(subject: Subject, options: Options, layout: Any = contiguous) -> tuple[Any, Any, list[Tensor]]:
    """The op, its formula in plain PyTorch, and inputs."""
    dtype = torch.float64 if subject.takes(torch.float64) else torch.float32
    widths = (3, 0, 2) if options.activation == "elu" else (3, 2, 2)
    inputs = arguments(subject.op, Random(dtype, seed=4, device=subject.device), (2, 2, 3), widths)
    inputs = [x if x is None or x.ndim != 4 or i > 1 else layout(x) for i, x in enumerate(inputs)]
    return (
        lambda *x: subject(*filled(inputs, x), **options.of(subject.op)),
        lambda *x: plain(subject.op, filled(inputs, x), options),
        tensors(inputs),
    )


@each(*OPS)
@pytest.mark.parametrize("options", MIXED, ids=str)
@pytest.mark.parametrize(
    ("way", "layout"),
    [*((way, contiguous) for way in WAYS), *((way, channels_last) for way in (by_jvp, by_vmap, by_batched_gradients))],
)
def test_transforms_are_the_plain_form_s(subject: Subject, options: Options, way: Any, layout: Any) -> None:
    if subject.interpreted and way not in (by_jvp, by_vmap, by_batched_gradients):
        return  # no backend's kernel runs in any but the last, and there it is slow
    if options.activation == "silu" and way is by_forward_over_reverse:
        return  # PyTorch has no forward mode of its own silu's backward
    op, formula, inputs = transformed(subject, options, layout)
    close = functools.partial(torch.testing.assert_close, check_stride=False)
    if inputs[0].dtype == torch.float32:
        close = functools.partial(close, rtol=1e-3, atol=1e-3)
    close(way(op, *inputs), way(formula, *inputs))


@each(*OPS)
@pytest.mark.parametrize("way", [by_jvp, by_dual_numbers, by_grad])
def test_transforms_compile(subject: Subject, way: Any) -> None:
    if subject.interpreted:
        return
    op, formula, inputs = transformed(subject, MIXED[1])
    found = torch.compile(lambda *inputs: way(op, *inputs), fullgraph=True, backend="aot_eager")(*inputs)
    torch.testing.assert_close(found, way(formula, *inputs), check_stride=False)


# Flops.


@each("upsample_merge")
@WIDTHS
@pytest.mark.parametrize("needs", ["all", "maps", "parameters", "none"])
def test_flops(subject: Subject, widths: Any, needs: str) -> None:
    inputs = given(subject, widths=widths)
    for i, x in enumerate(inputs):
        if x is not None:
            x.requires_grad_(needs == "all" or needs == ("maps" if i < 2 else "parameters"))
    expected = forward_and_backward(lambda *x: plain(subject.op, x, Options()), inputs)
    assert forward_and_backward(subject.function, inputs) == expected
    assert expected[0] > 0

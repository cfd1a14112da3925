"""The ops are at home in PyTorch: opcheck, autocast, torch.compile, torch.export, ONNX, double backward."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import sharpmask_kernels as kernels
from sharpmask_kernels import Windows

from .inputs import SCATTERED, Random, TopDownPass, arguments, channels_last, contiguous, sliced, windows_at
from .subjects import REFINEMENT, Subject, each

pytestmark = pytest.mark.grid

# From here on torch.compile guards on what the choice of a backend depends on, and counts windows as dynamic.
GUARDS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)

FORMATS = pytest.mark.parametrize("layout", [contiguous, channels_last, sliced])
OPTIONS = {"upsample": "bilinear", "padding_mode": "replicate"}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    # Sizes that happen to be equal in one call are not taken to be equal always.
    with torch.fx.experimental._config.patch(use_duck_shape=False):
        yield
    torch._dynamo.reset()


def given(subject: Subject, layout: Callable[[Tensor], Tensor] = contiguous, grad: bool = True) -> list[Tensor]:
    a, b, *rest = arguments(subject.op, Random(torch.float32, seed=3, device=subject.device), (2, 5, 4), (3, 2, 4))
    return [x.detach().requires_grad_(grad) for x in (layout(a), layout(b), *rest)]


# opcheck: schema, autograd registration, fake tensors, compiled forward and backward.


@each(*REFINEMENT)
@FORMATS
@pytest.mark.parametrize("upsample", ["bilinear", "nearest"])
@pytest.mark.parametrize("grad", [True, False])
def test_opcheck(subject: Subject, layout: Callable[[Tensor], Tensor], upsample: str, grad: bool) -> None:
    op = getattr(torch.ops.sharpmask, subject.op).default
    torch.library.opcheck(op, (*given(subject, layout, grad), upsample, "zeros", grad, subject.backend))


@each(*REFINEMENT)
@FORMATS
def test_opcheck_backward(subject: Subject, layout: Callable[[Tensor], Tensor]) -> None:
    inputs = given(subject, layout, grad=False)
    out, *saved = getattr(torch.ops.sharpmask, subject.op)(*inputs, "bilinear", "zeros", True, subject.backend)
    maps = inputs[1:2] if subject.op == "add_upsample" else inputs[:2]
    weights = [x for x in inputs[2:] if x.ndim == 4]
    op = getattr(torch.ops.sharpmask, f"{subject.op}_backward").default
    for needs in ([True] * len(inputs), [i % 2 == 0 for i in range(len(inputs))]):
        options = ("bilinear", "zeros", layout is channels_last, needs, subject.backend)
        # The forward gives skip before active, the backward takes them the other way round.
        torch.library.opcheck(op, (layout(torch.ones_like(out)), *reversed(saved), *maps, *weights, *options))


@each("gather_windows")
@FORMATS
def test_opcheck_gather(subject: Subject, layout: Callable[[Tensor], Tensor]) -> None:
    random = Random(torch.float32, device=subject.device)
    maps = [layout(random(2, 3, 4, 5)).requires_grad_(), layout(random(2, 3, 6, 2)).requires_grad_()]
    _, *windows = windows_at(*SCATTERED, device=subject.device)
    torch.library.opcheck(torch.ops.sharpmask.gather_windows.default, (maps, *windows, 3, 2, subject.backend))
    grad = layout(random(len(SCATTERED), 3, 3, 3))
    for needs in ([True, True], [False, True]):
        options = (2, [4, 6], [5, 2], layout is channels_last, needs, 2, subject.backend)
        torch.library.opcheck(torch.ops.sharpmask.gather_windows_backward.default, (grad, *windows, *options))


@each("refine_windows")
@FORMATS
@pytest.mark.parametrize("threshold", [None, 0.3])
def test_opcheck_refine_windows(subject: Subject, layout: Callable[[Tensor], Tensor], threshold: float | None) -> None:
    c = TopDownPass(torch.float32, device=subject.device)
    maps = [layout(m) for levels in c.horizontals for m in levels]
    weights, biases = zip(*(conv for convs in [*c.stages, [c.head]] for conv in convs), strict=True)
    inputs = (layout(c.encoding), maps, *c.windows[1:], list(weights), list(biases), [1, 1], "bilinear", "zeros")
    ops = torch.ops.sharpmask
    torch.library.opcheck(ops.refine_windows.default, (*inputs, threshold, subject.backend))
    out = c(threshold=threshold, backend=subject.backend)
    torch.library.opcheck(ops.refine_windows_out.default, (*inputs, threshold, out, subject.backend))


@each("encode_windows")
def test_opcheck_encode(subject: Subject) -> None:
    logits = Random(torch.float32, device=subject.device)(3, 6, 6)
    _, _, *windows = windows_at(*SCATTERED[:3], device=subject.device)
    inputs = (logits, *windows, [10, 12], [0.5, 1.0], 0.2, subject.backend)
    torch.library.opcheck(torch.ops.sharpmask.encode_windows.default, inputs)


def test_opcheck_topk() -> None:
    scores = [channels_last(Random(torch.float32)(2, 1, 4, 5)), Random(torch.float32)(2, 1, 3, 3)]
    for n in (0, 5, 99):
        torch.library.opcheck(torch.ops.sharpmask.topk_windows.default, (scores, n))


# Double backward.


@each(*REFINEMENT, "gather_windows")
def test_double_backward_is_refused(subject: Subject) -> None:
    if subject.op == "gather_windows":
        inputs = [Random(torch.float32, device=subject.device)(1, 2, 4, 4).requires_grad_()]
        out = subject(inputs, windows_at((0, 0, 1, 1), device=subject.device), 2)
    else:
        inputs = given(subject)
        out = subject(*inputs)
    gradients = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
    with pytest.raises(NotImplementedError, match=f"{subject.op} has no second derivative"):
        gradients[0].sum().backward()


# Autocast: as the plain layers behave.


@each(*REFINEMENT)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(subject: Subject, dtype: torch.dtype) -> None:
    # Positive values, so that rounding does not change what ReLU lets through.
    inputs = [x.detach().abs().requires_grad_() for x in given(subject)]
    with torch.autocast(subject.device, dtype=dtype):
        out = subject(*inputs, **OPTIONS)
        # add_upsample promotes, as a sum of an fp32 map and a convolution does.
        assert out.dtype == (torch.float32 if subject.op == "add_upsample" else dtype)
        half = subject(inputs[0].to(dtype), *inputs[1:], **OPTIONS)
        assert half.dtype == dtype
    out.sum().backward()
    expected = [x.detach().clone().requires_grad_() for x in inputs]
    subject(*expected, **OPTIONS).sum().backward()
    for x, y in zip(inputs, expected, strict=True):
        assert x.grad is not None and y.grad is not None
        assert x.grad.dtype == torch.float32
        torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=0.03 * float(y.grad.abs().max()))


@each(*REFINEMENT, "refine_windows")
def test_autocast_leaves_double_precision_alone(subject: Subject) -> None:
    if not subject.takes(torch.float64):
        return
    top_down = TopDownPass(torch.float64, device=subject.device)
    inputs = [x.double() for x in given(subject)] if subject.op in REFINEMENT else []
    call = (lambda: subject(*inputs)) if inputs else (lambda: top_down(backend=subject.backend))
    expected = call()
    with torch.autocast(subject.device, dtype=torch.bfloat16):
        out = call()
    assert out.dtype == torch.float64
    assert torch.equal(out, expected)


@each("refine_windows")
def test_autocast_of_refine_windows(subject: Subject) -> None:
    """Maps that convolutions made under autocast meet fp32 weights."""
    top_down = TopDownPass(torch.float32, device=subject.device)
    expected = top_down(backend=subject.backend)
    top_down.encoding = top_down.encoding.bfloat16()
    with torch.autocast(subject.device, dtype=torch.bfloat16):
        out = top_down(backend=subject.backend)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, expected, rtol=0, atol=0.05 * float(expected.abs().max()))


@each("gather_windows")
def test_autocast_does_not_change_what_is_only_copied(subject: Subject) -> None:
    maps = Random(torch.float32, device=subject.device)(1, 2, 4, 4)
    with torch.autocast(subject.device, dtype=torch.bfloat16):
        assert subject(maps, windows_at((0, 0, 1, 1), device=subject.device), 2).dtype == torch.float32


# torch.compile.


@each(*REFINEMENT)
def test_compile(subject: Subject) -> None:
    """One graph, whatever the height, width and batch; gradients too."""
    counter = CompileCounterWithBackend("aot_eager")
    run = functools.partial(subject.function, **OPTIONS)
    compiled = torch.compile(lambda *x: run(*x), fullgraph=True, dynamic=True, backend=counter)
    sizes = ((2, 2, 9), (3, 3, 11), (2, 4, 10)) if subject.interpreted else ((6, 11, 13), (7, 19, 10), (2, 10, 29))
    for size in sizes:
        found = [
            x.requires_grad_()
            for x in arguments(subject.op, Random(torch.float32, device=subject.device), size, (3, 2, 4))
        ]
        expected = [x.detach().clone().requires_grad_() for x in found]
        out, plain = compiled(*found), subject(*expected, **OPTIONS)
        torch.testing.assert_close(out, plain)
        out.square().sum().backward()
        plain.square().sum().backward()
        for x, y in zip(found, expected, strict=True):
            assert y.grad is not None
            torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=1e-5 * float(y.grad.abs().max()))
    assert counter.frame_count == 1


@each("gather_windows")
def test_compile_gather(subject: Subject) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    run = subject.function

    def cut(maps: list[Tensor], windows: Windows) -> Tensor:
        return run(maps, windows, 3, step=2)

    compiled = torch.compile(cut, fullgraph=True, dynamic=True, backend=counter)
    random = Random(torch.float32, device=subject.device)
    for height, width, count in ((4, 5, 9), (7, 3, 8), (6, 8, 12)):
        windows = windows_at(*SCATTERED[:count], device=subject.device)
        maps = [random(2, 3, height, width).requires_grad_(), random(2, 3, 2 * height, width).requires_grad_()]
        out = compiled(maps, windows)
        torch.testing.assert_close(out, cut(maps, windows))
        found, expected = (torch.autograd.grad(y.square().sum(), maps) for y in (out, cut(maps, windows)))
        torch.testing.assert_close(found, expected)
    assert counter.frame_count == 1


@each("refine_windows")
def test_compile_refine_windows(subject: Subject) -> None:
    counter = CompileCounterWithBackend("aot_eager")

    def run(encoding: Tensor, windows: Windows, out: Tensor) -> tuple[Tensor, Tensor]:
        top_down.encoding, top_down.windows = encoding, windows
        return top_down(backend=subject.backend), top_down(out=out, backend=subject.backend)

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend=counter)
    top_down = TopDownPass(torch.float32, device=subject.device, count=17)
    whole, every = top_down.encoding, top_down.windows
    expected = top_down(backend=subject.backend)
    for count in (17, 13, 11):
        out = torch.empty_like(expected[:count])
        fresh, given_ = compiled(whole[:count].clone(), Windows(*(f[:count].clone() for f in every)), out)
        torch.testing.assert_close(fresh, expected[:count])
        torch.testing.assert_close(given_, expected[:count])
        torch.testing.assert_close(out, expected[:count])
    assert counter.frame_count == 1 if GUARDS else counter.frame_count <= 2


@pytest.mark.skipif(not GUARDS, reason="torch.compile keeps the first choice before PyTorch 2.13")
def test_a_preference_changed_later_is_seen_by_compiled_code() -> None:
    """The choice is constant within a graph; changing it compiles another."""
    counter = CompileCounterWithBackend("eager")
    inputs = [x.detach() for x in arguments("merge_upsample", Random(torch.float32), (1, 4, 4), (2, 2, 2))]
    compiled = torch.compile(kernels.merge_upsample, fullgraph=True, backend=counter)
    for names in ((), ("reference",), (), ("reference",)):
        with kernels.use_backend(*names):
            torch.testing.assert_close(compiled(*inputs), kernels.merge_upsample(*inputs))
    assert counter.frame_count == 2


class Chain(nn.Module):
    """A small model that calls every op a model can hold."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.skip = nn.Conv2d(5, 3, 3, padding=1)
        self.merge = nn.Conv2d(5, 2, 3, padding=1)
        self.vertical = nn.Conv2d(2, 2, 3, padding=1)
        self.head = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, feature: Tensor, mask: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
        skip, merge, vertical, head = self.skip, self.merge, self.vertical, self.head
        x = kernels.refine(feature, mask, skip.weight, skip.bias, merge.weight, merge.bias, padding_mode="replicate")
        x = kernels.merge_upsample(x[:, :1], x, vertical.weight.repeat(1, 2, 1, 1)[:, :3], None, upsample="nearest")
        windows = kernels.topk_windows([score, score[:, :, 1:]], 7)
        cut = kernels.gather_windows([x, x[:, :, 1:]], windows, 3)
        y = kernels.add_upsample(cut, cut, vertical.weight, vertical.bias)
        stages = [[(vertical.weight, vertical.bias)]]
        logits = kernels.refine_windows(cut, [[x], [x]], windows, stages, (head.weight, head.bias))
        return y, logits


def chain_inputs(height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    random = Random(torch.float32, seed=height)
    return random(2, 5, height, width), random(2, 2, height, width), random(2, 1, height - 1, width)


def test_compile_a_model_with_inductor() -> None:
    model = Chain().eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for size in ((6, 7), (8, 5)):
            torch.testing.assert_close(compiled(*chain_inputs(*size)), model(*chain_inputs(*size)))


# torch.export, ONNX, TorchScript: plain PyTorch operations, which need nothing from here.


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict: bool) -> None:
    model = Chain().eval()
    dynamic = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    exported = torch.export.export(model, chain_inputs(6, 7), dynamic_shapes=(dynamic,) * 3, strict=strict)
    targets = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert not [target for target in targets if "sharpmask" in target]
    for size in ((6, 7), (9, 8)):
        torch.testing.assert_close(exported.module()(*chain_inputs(*size)), model(*chain_inputs(*size)))


def test_onnx(tmp_path: Path) -> None:
    model, inputs = Chain().eval(), chain_inputs(6, 7)
    program = torch.onnx.export(model, inputs, dynamo=True, verbose=False)
    assert program is not None
    program.save(tmp_path / "chain.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "chain.onnx")
    feeds: dict[str, Any] = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
    with torch.no_grad():
        for found, expected in zip(session.run(None, feeds), model(*inputs), strict=True):
            np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*deprecated:FutureWarning")
def test_jit_trace() -> None:
    model = Chain().eval()
    traced = torch.jit.trace(model, chain_inputs(6, 7))
    assert "sharpmask::" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(*chain_inputs(6, 7)), model(*chain_inputs(6, 7)))

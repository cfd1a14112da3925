"""Derivatives of other kinds than the backward's, and vmap: the plain form's, whatever the backend."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap

import sharpmask_kernels as kernels
from sharpmask_kernels import Windows

from .inputs import SCATTERED, Random, TopDownPass, arguments, channels_last, contiguous, windows_at
from .oracle import PLAIN, plain_gather_windows, plain_horizontal
from .subjects import REFINEMENT, Subject, each

pytestmark = pytest.mark.grid

Function = Callable[..., Any]

OLD = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13)


def cosines(inputs: Any) -> tuple[Tensor, ...]:
    """Tangents for the inputs."""
    return tuple(x.cos() for x in inputs)


def doubled(inputs: Any) -> list[Tensor]:
    """The inputs with a first dimension to map over."""
    return [torch.stack([x, 2 * x]) for x in inputs]


def squares(op: Function) -> Function:
    return lambda *inputs: op(*inputs).square().sum()


def chain(op: Function, feature: Tensor, *parameters: Tensor) -> Any:
    """``horizontal``, or its formula, with a feature and the parameters one by one."""
    convs = list(zip(parameters[::2], parameters[1::2], strict=True))
    return op(feature, convs, padding_mode="replicate")


# Every way takes an op and its inputs.


def by_jvp(op: Function, *inputs: Tensor) -> Any:
    return jvp(op, inputs, cosines(inputs))


def by_dual_numbers(op: Function, *inputs: Tensor) -> Any:
    with forward_ad.dual_level():
        duals = map(forward_ad.make_dual, inputs, cosines(inputs))
        return tuple(forward_ad.unpack_dual(op(*duals)))


def by_dual_numbers_of_one(op: Function, *inputs: Tensor) -> Any:
    leaves = [x.clone().requires_grad_() for x in inputs]
    with forward_ad.dual_level():
        first = forward_ad.make_dual(leaves[0], inputs[0].cos())
        primal, tangent = forward_ad.unpack_dual(op(first, *leaves[1:]))
    assert tangent is not None
    return tangent.detach(), *torch.autograd.grad((primal * tangent).sum(), leaves)


def by_jacfwd(op: Function, *inputs: Tensor) -> Any:
    return jacfwd(op, argnums=len(inputs) - 1)(*inputs)


def by_jacrev(op: Function, *inputs: Tensor) -> Any:
    return jacrev(op, argnums=len(inputs) - 1)(*inputs)


def by_jacobian(op: Function, *inputs: Tensor) -> Any:
    ways: list[dict[str, Any]] = [{"strategy": "forward-mode", "vectorize": True}, {"vectorize": True}]
    jacobian = torch.autograd.functional.jacobian
    return [jacobian(lambda last: op(*inputs[:-1], last), inputs[-1], **way) for way in ways]


def by_linearize(op: Function, *inputs: Tensor) -> Any:
    out, linear = linearize(op, *inputs)
    return out, linear(*cosines(inputs))


def by_grad(op: Function, *inputs: Tensor) -> Any:
    return grad(squares(op), argnums=tuple(range(len(inputs))))(*inputs)


def by_vjp(op: Function, *inputs: Tensor) -> Any:
    out, pull = vjp(op, *inputs)
    return pull(out.cos())


def by_hessian(op: Function, *inputs: Tensor) -> Any:
    return hessian(lambda last: squares(op)(*inputs[:-1], last))(inputs[-1])


def by_vmap(op: Function, *inputs: Tensor) -> Any:
    return vmap(op)(*doubled(inputs)), vmap(lambda first: op(first, *inputs[1:]), out_dims=1)(doubled(inputs[:1])[0])


def by_gradients_for_each(op: Function, *inputs: Tensor) -> Any:
    return vmap(grad(squares(op), argnums=len(inputs) - 1))(*doubled(inputs))


def by_gradients_through_vmap(op: Function, *inputs: Tensor) -> Any:
    leaves = [x.requires_grad_() for x in doubled(inputs)]
    return torch.autograd.grad(vmap(op)(*leaves).square().sum(), leaves)


def by_batched_gradients(op: Function, *inputs: Tensor) -> Any:
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = op(*leaves)
    return torch.autograd.grad(out, leaves, torch.stack([out.cos(), out.sin()]).detach(), is_grads_batched=True)


def by_forward_over_reverse(op: Function, *inputs: Tensor) -> Any:
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = op(*leaves)
    with forward_ad.dual_level():
        gradients = torch.autograd.grad(out, leaves, forward_ad.make_dual(out.detach().cos(), out.detach().sin()))
        return [forward_ad.unpack_dual(gradient).tangent for gradient in gradients]


WAYS = [
    by_jvp, by_dual_numbers, by_dual_numbers_of_one, by_jacfwd, by_jacrev, by_jacobian, by_linearize, by_grad, by_vjp,
    by_hessian, by_vmap, by_gradients_for_each, by_gradients_through_vmap, by_batched_gradients,
    by_forward_over_reverse,
]  # fmt: skip


def case(subject: Subject, layout: Function = contiguous) -> tuple[Function, Function, list[Tensor]]:
    """The op, its formula in plain PyTorch, and inputs."""
    dtype = torch.float64 if subject.takes(torch.float64) else torch.float32
    random = Random(dtype, seed=4, device=subject.device)
    if subject.op == "gather_windows":
        windows = windows_at(*SCATTERED, device=subject.device)
        places: Any = Windows(*(field.cpu().numpy() for field in windows))  # numbers that no transform wraps
        maps = [layout(random(2, 2, 4, 5)), layout(random(2, 2, 2, 3))]
        return (
            lambda *maps: subject(maps, windows, 2),
            lambda *maps: plain_gather_windows(maps, places, 2, 1),
            maps,
        )
    if subject.op == "horizontal":
        shapes = [(2, 2, 3, 4), (3, 2, 3, 3), (3,), (2, 3, 3, 3), (2,)]
        feature, *parameters = (random(*shape) for shape in shapes)
        return (
            functools.partial(chain, subject),
            functools.partial(chain, plain_horizontal),
            [
                layout(feature),
                *parameters,
            ],
        )
    a, b, *rest = arguments(subject.op, random, (2, 3, 4), (3, 2, 2), 3)
    op = functools.partial(subject.function, upsample="bilinear", padding_mode="replicate")
    return op, lambda *inputs: PLAIN[subject.op](*inputs, "bilinear", "replicate"), [layout(a), layout(b), *rest]


@each(*REFINEMENT, "gather_windows", "horizontal")
@pytest.mark.parametrize(
    ("way", "layout"),
    [*((way, contiguous) for way in WAYS), *((way, channels_last) for way in (by_jvp, by_vmap, by_batched_gradients))],
)
def test_they_are_the_plain_form_s(subject: Subject, way: Function, layout: Function) -> None:
    if subject.interpreted and way not in (by_jvp, by_vmap, by_batched_gradients):
        return  # no backend's kernel runs in any but the last, and there it is slow
    op, plain, inputs = case(subject, layout)
    found, expected = way(op, *inputs), way(plain, *inputs)
    close = functools.partial(torch.testing.assert_close, check_stride=False)
    if inputs[0].dtype == torch.float32:
        close = functools.partial(close, rtol=1e-3, atol=1e-3)
    close(found, expected)


@each("refine", "gather_windows", "horizontal")
@pytest.mark.parametrize("way", [by_jvp, by_dual_numbers, by_grad, *([] if OLD else [by_vmap])])
def test_they_compile(subject: Subject, way: Function) -> None:
    if subject.interpreted:
        return
    op, plain, inputs = case(subject)
    torch._dynamo.reset()
    found = torch.compile(lambda *inputs: way(op, *inputs), fullgraph=True, backend="aot_eager")(*inputs)
    torch.testing.assert_close(found, way(plain, *inputs), check_stride=False)


def test_they_agree_with_finite_differences() -> None:
    inputs = [x.requires_grad_() for x in arguments("refine", Random(seed=1), (1, 2, 2), (2, 1, 2), 2)]
    assert torch.autograd.gradcheck(kernels.refine, inputs, check_forward_ad=True, check_batched_grad=True)


def test_gradients_of_a_module_for_each_sample() -> None:
    module = kernels.Refinement(3, 2, 2, 4).double()
    feature, mask = Random()(5, 3, 4, 4), Random(seed=1)(5, 2, 4, 4)
    parameters = {name: p.detach() for name, p in module.named_parameters()}

    def loss(parameters: dict[str, Tensor], feature: Tensor, mask: Tensor) -> Tensor:
        return torch.func.functional_call(module, parameters, (feature[None], mask[None])).square().sum()

    found = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, feature, mask)
    for i in range(5):
        module.zero_grad()
        module(feature[i : i + 1], mask[i : i + 1]).square().sum().backward()
        torch.testing.assert_close({name: g[i] for name, g in found.items()}, gradients(module))


def gradients(module: torch.nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in module.named_parameters()}
    return {name: g for name, g in found.items() if g is not None}


# Ops without a derivative.


@each("refine_windows")
@pytest.mark.parametrize("given_out", [False, True])
def test_an_op_for_inference_refuses_them(subject: Subject, given_out: bool) -> None:
    top_down = TopDownPass(torch.float32, device=subject.device)
    out = torch.empty_like(top_down(backend=subject.backend)) if given_out else None

    def run(encoding: Tensor) -> Tensor:
        top_down.encoding = encoding
        return top_down(backend=subject.backend, out=out)

    encoding = top_down.encoding
    for way in (by_jvp, by_dual_numbers, by_grad):
        with pytest.raises(NotImplementedError, match="refine_windows is for inference only"):
            way(run, encoding)
    one = torch.ones((), device=subject.device)
    assert jvp(lambda c: c * run(encoding).sum(), (one,), (one,))[1] == run(encoding).sum()


@each("refine_windows")
def test_refine_windows_under_vmap(subject: Subject) -> None:
    top_down = TopDownPass(torch.float32, device=subject.device)
    encoding = top_down.encoding

    def run(encoding: Tensor) -> Tensor:
        top_down.encoding = encoding
        return top_down(backend=subject.backend)

    found = vmap(run)(torch.stack([encoding, 2 * encoding]))
    torch.testing.assert_close(found, torch.stack([run(encoding), run(2 * encoding)]), rtol=1e-4, atol=1e-4)


def test_topk_windows_under_transforms() -> None:
    """Its score has no derivative, as in the backward pass; what is gathered at its windows has one."""
    scores, maps = Random()(2, 1, 3, 4), Random(seed=1)(2, 2, 3, 4)

    def gathered(scores: Tensor, maps: Tensor) -> Tensor:
        return kernels.gather_windows(maps, kernels.topk_windows([scores], 3), 2)

    windows = kernels.topk_windows([scores], 3)
    score, tangent = jvp(lambda s: kernels.topk_windows([s], 3).score, (scores,), (scores,))
    assert torch.equal(score, windows.score) and not tangent.any()
    found = vmap(lambda s: tuple(kernels.topk_windows([s], 3)))(torch.stack([scores, -scores]))
    assert all(torch.equal(f[0], w) for f, w in zip(found, windows, strict=True))
    assert all(torch.equal(f[1], w) for f, w in zip(found, kernels.topk_windows([-scores], 3), strict=True))
    out, tangent = jvp(gathered, (scores, maps), (scores, maps.cos()))
    assert torch.equal(tangent, kernels.gather_windows(maps.cos(), windows, 2))
    assert torch.equal(vmap(gathered)(torch.stack([scores] * 2), torch.stack([maps] * 2))[1], out)


@each("encode_windows")
def test_encode_windows_refuses_transforms(subject: Subject) -> None:
    logits, windows = torch.zeros(1, 4, 4, device=subject.device), windows_at((0, 0, 0, 0), device=subject.device)

    def run(logits: Tensor) -> Tensor:
        subject(logits, windows, (6, 6), [1.0])
        return logits.sum()

    for transformed in (grad(run), vmap(run), lambda logits: jvp(run, (logits,), (logits,))):
        with pytest.raises(RuntimeError, match="encode_windows ends on the host"):
            transformed(logits)


def test_windows_may_be_mapped_over() -> None:
    maps, cells = Random()(1, 2, 5, 5), torch.tensor([[0, 1], [3, -1]])
    zeros = torch.zeros_like(cells[0])

    def cut(row: Tensor) -> Tensor:
        return kernels.gather_windows(maps, Windows(zeros.float(), zeros, zeros, row, zeros), 2)

    assert torch.equal(vmap(cut)(cells), torch.stack([cut(cells[0]), cut(cells[1])]))

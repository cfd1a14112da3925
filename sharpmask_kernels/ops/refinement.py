"""The ops as PyTorch knows them, ``torch.ops.sharpmask.*``: schema, fake, autograd.

Each differentiable op is one forward and one ``_backward``. They are the same for every backend: the backend's name is
the last argument, and :func:`_define` looks the function up when real tensors arrive. Schemas hold flat tensors and
numbers only; :mod:`sharpmask_kernels.functional` has the arguments that people use, checks them and chooses the
backend, so that a backward runs where its forward ran.

What a backward keeps: the inputs, the skip S (few channels) and ``active``, one bit for every activation that ReLU let
through, (B, Ko, H, ceil(W / 8)) uint8 packed along x, the first in the lowest bit. The forward makes these only if
``save``. A backward returns only the gradients that ``needs`` asks for, in the order of the inputs, the maps'
gradients in the memory format of the output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import dispatch, layout
from .backends import reference

_library = torch.library.Library("sharpmask", "DEF")
# The layout of the output follows from the layout of the maps: compilers must keep it.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)


def _define(name: str, schema: str, fake: Callable[..., Any], kernel: Callable[..., Any] | None = None) -> None:
    def run(*arguments: Any) -> Any:
        return getattr(dispatch.module(arguments[-1]), name)(*arguments[:-1])

    _library.define(f"{name}{schema}", tags=_TAGS)
    # A layer of its own below autograd, whatever the device: the cheapest registration there is.
    _library.impl(name, kernel or run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"sharpmask::{name}", fake, lib=_library)


def _differentiable(name: str, backward: Callable[..., Any], setup_context: Callable[..., None]) -> None:
    torch.library.register_autograd(f"sharpmask::{name}", backward, setup_context=setup_context, lib=_library)
    _refuse_gradient(f"{name}_backward", f"{name} has no second derivative")


def _refuse_gradient(name: str, reason: str) -> None:
    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError(reason)

    torch.library.register_autograd(f"sharpmask::{name}", backward, lib=_library)


def _scatter(gradients: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
    """The gradients asked for at the places of their inputs, None at the others."""
    found = iter(gradients)
    return [next(found) if need else None for need in needs]


def _keep_options(
    ctx: Any, tensors: int, maps: tuple[Tensor, ...], upsample: str, padding_mode: str, backend: str
) -> None:
    """What a backward takes after its tensors."""
    ctx.set_materialize_grads(False)  # the outputs that are not differentiable need no zeros
    channels_last = layout.memory_format(*maps) == torch.channels_last
    ctx.options = (upsample, padding_mode, channels_last, list(ctx.needs_input_grad[:tensors]), backend)


def _backward(
    ctx: Any, op: Callable[..., list[Tensor]], grad: Tensor | None, tensors: int
) -> tuple[Tensor | None, ...]:
    """The gradients of an op whose first ``tensors`` inputs are tensors and whose other four are not."""
    needs = ctx.needs_input_grad[:tensors]
    gradients = _scatter(op(grad, *ctx.saved_tensors, *ctx.options), needs) if grad is not None else [None] * tensors
    return (*gradients, None, None, None, None)


def _empty_up2(out_channels: int, *maps: Tensor) -> Tensor:
    batch, _, height, width = maps[0].shape
    return layout.empty((batch, out_channels, 2 * height, 2 * width), maps[0], layout.memory_format(*maps))


def _empty_active(out_channels: int, like: Tensor, save: bool) -> Tensor:
    batch, _, height, width = like.shape
    shape = (batch, out_channels, height, (width + 7) // 8) if save else (0,)
    return like.new_empty(shape, dtype=torch.uint8)


def _empty_gradients(inputs: Sequence[Tensor], channels_last: bool, needs: Sequence[bool]) -> list[Tensor]:
    return [
        layout.empty(x.shape, x, layout.chosen(channels_last and x.ndim == 4))
        for x, need in zip(inputs, needs, strict=True)
        if need
    ]


# merge_upsample


def _merge_upsample_fake(
    skip: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    upsample: str,
    padding_mode: str,
    save: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return _empty_up2(weight.shape[0], skip, mask), _empty_active(weight.shape[0], skip, save)


def _merge_upsample_backward_fake(
    grad: Tensor,
    active: Tensor,
    skip: Tensor,
    mask: Tensor,
    weight: Tensor,
    upsample: str,
    padding_mode: str,
    channels_last: bool,
    needs: Sequence[bool],
    backend: str,
) -> list[Tensor]:
    return _empty_gradients([skip, mask, weight, weight[:, 0, 0, 0]], channels_last, needs)


def _merge_upsample_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    skip, mask, weight, _, upsample, padding_mode, _, backend = inputs
    _, active = output
    ctx.mark_non_differentiable(active)
    ctx.save_for_backward(active, skip, mask, weight)
    _keep_options(ctx, 4, (skip, mask), upsample, padding_mode, backend)


def _merge_upsample_backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    return _backward(ctx, torch.ops.sharpmask.merge_upsample_backward, grad, 4)


_define(
    "merge_upsample",
    "(Tensor skip, Tensor mask, Tensor weight, Tensor? bias, str upsample, str padding_mode, bool save, str backend)"
    " -> (Tensor, Tensor)",
    _merge_upsample_fake,
)
_define(
    "merge_upsample_backward",
    "(Tensor grad, Tensor active, Tensor skip, Tensor mask, Tensor weight, str upsample, str padding_mode,"
    " bool channels_last, bool[] needs, str backend) -> Tensor[]",
    _merge_upsample_backward_fake,
)
_differentiable("merge_upsample", _merge_upsample_backward, _merge_upsample_setup)


# refine


def _refine_fake(
    feature: Tensor,
    mask: Tensor,
    skip_weight: Tensor,
    skip_bias: Tensor | None,
    merge_weight: Tensor,
    merge_bias: Tensor | None,
    upsample: str,
    padding_mode: str,
    save: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, height, width = feature.shape
    skip_shape = (batch, skip_weight.shape[0], height, width)
    memory_format = layout.memory_format(feature, mask)
    return (
        _empty_up2(merge_weight.shape[0], feature, mask),
        layout.empty(skip_shape, feature, memory_format) if save else feature.new_empty(0),
        _empty_active(merge_weight.shape[0], feature, save),
    )


def _refine_backward_fake(
    grad: Tensor,
    active: Tensor,
    skip: Tensor,
    feature: Tensor,
    mask: Tensor,
    skip_weight: Tensor,
    merge_weight: Tensor,
    upsample: str,
    padding_mode: str,
    channels_last: bool,
    needs: Sequence[bool],
    backend: str,
) -> list[Tensor]:
    skip_bias, merge_bias = skip_weight[:, 0, 0, 0], merge_weight[:, 0, 0, 0]
    inputs = [feature, mask, skip_weight, skip_bias, merge_weight, merge_bias]
    return _empty_gradients(inputs, channels_last, needs)


def _refine_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    feature, mask, skip_weight, _, merge_weight, _, upsample, padding_mode, _, backend = inputs
    _, skip, active = output
    ctx.mark_non_differentiable(skip, active)
    ctx.save_for_backward(active, skip, feature, mask, skip_weight, merge_weight)
    _keep_options(ctx, 6, (feature, mask), upsample, padding_mode, backend)


def _refine_backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    return _backward(ctx, torch.ops.sharpmask.refine_backward, grad, 6)


_define(
    "refine",
    "(Tensor feature, Tensor mask, Tensor skip_weight, Tensor? skip_bias, Tensor merge_weight, Tensor? merge_bias,"
    " str upsample, str padding_mode, bool save, str backend) -> (Tensor, Tensor, Tensor)",
    _refine_fake,
)
_define(
    "refine_backward",
    "(Tensor grad, Tensor active, Tensor skip, Tensor feature, Tensor mask, Tensor skip_weight, Tensor merge_weight,"
    " str upsample, str padding_mode, bool channels_last, bool[] needs, str backend) -> Tensor[]",
    _refine_backward_fake,
)
_differentiable("refine", _refine_backward, _refine_setup)


# add_upsample


def _add_upsample_fake(
    horizontal: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    upsample: str,
    padding_mode: str,
    save: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return _empty_up2(weight.shape[0], horizontal, mask), _empty_active(weight.shape[0], mask, save)


def _add_upsample_backward_fake(
    grad: Tensor,
    active: Tensor,
    mask: Tensor,
    weight: Tensor,
    upsample: str,
    padding_mode: str,
    channels_last: bool,
    needs: Sequence[bool],
    backend: str,
) -> list[Tensor]:
    batch, _, height, width = mask.shape
    horizontal = mask.new_empty(batch, weight.shape[0], height, width)
    return _empty_gradients([horizontal, mask, weight, weight[:, 0, 0, 0]], channels_last, needs)


def _add_upsample_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    horizontal, mask, weight, _, upsample, padding_mode, _, backend = inputs
    _, active = output
    ctx.mark_non_differentiable(active)
    ctx.save_for_backward(active, mask, weight)
    _keep_options(ctx, 4, (horizontal, mask), upsample, padding_mode, backend)


def _add_upsample_backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    return _backward(ctx, torch.ops.sharpmask.add_upsample_backward, grad, 4)


_define(
    "add_upsample",
    "(Tensor horizontal, Tensor mask, Tensor weight, Tensor? bias, str upsample, str padding_mode, bool save,"
    " str backend) -> (Tensor, Tensor)",
    _add_upsample_fake,
)
_define(
    "add_upsample_backward",
    "(Tensor grad, Tensor active, Tensor mask, Tensor weight, str upsample, str padding_mode, bool channels_last,"
    " bool[] needs, str backend) -> Tensor[]",
    _add_upsample_backward_fake,
)
_differentiable("add_upsample", _add_upsample_backward, _add_upsample_setup)


# gather_windows


def _gather_windows_fake(
    maps: Sequence[Tensor],
    image: Tensor,
    scale: Tensor,
    row: Tensor,
    col: Tensor,
    size: int,
    step: int,
    backend: str,
) -> Tensor:
    shape = (scale.shape[0], maps[0].shape[1], size, size)
    return layout.empty(shape, maps[0], layout.memory_format(*maps))


def _gather_windows_backward_fake(
    grad: Tensor,
    image: Tensor,
    scale: Tensor,
    row: Tensor,
    col: Tensor,
    batch: int,
    heights: Sequence[int],
    widths: Sequence[int],
    channels_last: bool,
    needs: Sequence[bool],
    step: int,
    backend: str,
) -> list[Tensor]:
    shapes = [(batch, grad.shape[1], h, w) for h, w, need in zip(heights, widths, needs, strict=True) if need]
    return [layout.empty(shape, grad, layout.chosen(channels_last)) for shape in shapes]


def _gather_windows_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    maps, image, scale, row, col, _, step, backend = inputs
    ctx.save_for_backward(image, scale, row, col)
    channels_last = layout.memory_format(*maps) == torch.channels_last
    sizes = [m.shape[2] for m in maps], [m.shape[3] for m in maps]
    ctx.options = (maps[0].shape[0], *sizes, channels_last)
    ctx.choices = (step, backend)


def _gather_windows_backward(ctx: Any, grad: Tensor) -> tuple[list[Tensor | None] | None, ...]:
    needs = ctx.needs_input_grad[0]  # one per map; known only here, not when the context is set up
    arguments = (grad, *ctx.saved_tensors, *ctx.options, needs, *ctx.choices)
    gradients = torch.ops.sharpmask.gather_windows_backward(*arguments)
    return (_scatter(gradients, needs), None, None, None, None, None, None, None)


_define(
    "gather_windows",
    "(Tensor[] maps, Tensor image, Tensor scale, Tensor row, Tensor col, SymInt size, SymInt step, str backend)"
    " -> Tensor",
    _gather_windows_fake,
)
_define(
    "gather_windows_backward",
    "(Tensor grad, Tensor image, Tensor scale, Tensor row, Tensor col, SymInt batch, SymInt[] heights,"
    " SymInt[] widths, bool channels_last, bool[] needs, SymInt step, str backend) -> Tensor[]",
    _gather_windows_backward_fake,
)
_differentiable("gather_windows", _gather_windows_backward, _gather_windows_setup)


# Inference only: topk_windows, refine_windows, encode_windows


def _topk_windows_fake(scores: Sequence[Tensor], n: int) -> tuple[Tensor, ...]:
    cells = sum(s.shape[2] * s.shape[3] for s in scores)
    count = scores[0].shape[0] * torch.sym_min(n, cells)
    score = scores[0].new_empty(count, dtype=torch.float32)
    return score, *(torch.empty_like(score, dtype=torch.int64) for _ in range(4))


_define(
    "topk_windows",
    "(Tensor[] scores, SymInt n) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _topk_windows_fake,
    kernel=reference.topk_windows,
)

_REFINE_WINDOWS = (
    "Tensor encoding, Tensor[] horizontals, Tensor image, Tensor scale, Tensor row, Tensor col, Tensor[] weights,"
    " Tensor?[] biases, int[] convs, str upsample, str padding_mode, float? threshold"
)


def shape_of_windows(encoding: Tensor, stages: int, threshold: float | None) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and dtype of the result of refine_windows: logits, or bits if there is a ``threshold``."""
    count, side = encoding.shape[0], encoding.shape[-1] * 2**stages
    if threshold is not None:
        return (count, side, (side + 7) // 8), torch.uint8
    return (count, side, side), torch.float64 if encoding.dtype == torch.float64 else torch.float32


def empty_windows(encoding: Tensor, stages: int, threshold: float | None) -> Tensor:
    """The uninitialised result of refine_windows."""
    shape, dtype = shape_of_windows(encoding, stages, threshold)
    return encoding.new_empty(shape, dtype=dtype)


def _refine_windows(*arguments: Any) -> Tensor:
    *given, backend = arguments
    encoding, convs, threshold = given[0], given[8], given[11]
    out = empty_windows(encoding, len(convs), threshold)
    dispatch.module(backend).refine_windows(*given, out)
    return out


def _refine_windows_fake(*arguments: Any) -> Tensor:
    return empty_windows(arguments[0], len(arguments[8]), arguments[11])


def _refine_windows_out(*arguments: Any) -> None:
    dispatch.module(arguments[-1]).refine_windows(*arguments[:-1])


_define("refine_windows", f"({_REFINE_WINDOWS}, str backend) -> Tensor", _refine_windows_fake, kernel=_refine_windows)
_refuse_gradient(
    "refine_windows", "refine_windows is for inference only; gather_windows and add_upsample have gradients"
)
_define(
    "refine_windows_out",
    f"({_REFINE_WINDOWS}, Tensor(a!) out, str backend) -> ()",
    lambda *_: None,
    kernel=_refine_windows_out,
)


def _encode_windows_fake(
    logits: Tensor,
    scale: Tensor,
    row: Tensor,
    col: Tensor,
    image_size: Sequence[int],
    scales: Sequence[float],
    threshold: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    count = torch.library.get_ctx().new_dynamic_size()
    counts = torch.empty(count, dtype=torch.uint8, device="cpu")
    return counts, torch.empty(logits.shape[0] + 1, dtype=torch.int64, device="cpu")


_define(
    "encode_windows",
    "(Tensor logits, Tensor scale, Tensor row, Tensor col, SymInt[] image_size, float[] scales, float threshold,"
    " str backend) -> (Tensor, Tensor)",
    _encode_windows_fake,
)

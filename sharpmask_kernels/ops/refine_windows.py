"""``refine_windows``: the top-down pass of the top-N windows, in one batch (section 3.3). For inference only."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import checks, dispatch, registry
from ..backends.reference import refine_windows as reference
from ..windows import Windows
from . import calling
from .calling import ConvParameters
from .library import Case, define, refuse_derivatives, scattered_windows


def refine_windows(
    encoding: Tensor,
    horizontals: Sequence[Sequence[Tensor]],
    windows: Windows,
    stages: Sequence[Sequence[ConvParameters]],
    head: ConvParameters,
    *,
    upsample: str = "bilinear",
    padding_mode: str = "zeros",
    threshold: float | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """All top-N windows through all refinement stages, in one batch (section 3.3). For inference: no gradient.

    encoding (N, K0, s, s): the mask encodings M1. horizontals[scale][j] (B, K(j+1), H, W): the dense
    horizontal maps, of which stage j reads the rows row * 2^j .. + s * 2^j of its window. stages[j]: the
    vertical convolutions [(weight, bias), ...] of stage j, ReLU between. head: (weight (1, KJ, 3, 3), bias).

    -> logits (N, S, S), S = s * 2^len(stages), fp32 (fp64 for fp64 input); or, given a probability
    ``threshold``, the bits (N, S, ceil(S / 8)) uint8 of sigmoid(logits) > threshold, packed along x, the first
    in the lowest bit. ``out`` of that shape and dtype is written and returned.
    """
    autocast = calling.autocast_dtype(encoding)
    (encoding,) = calling.cast(autocast, encoding)
    try:
        horizontals = [calling.cast(autocast, *levels) for levels in horizontals]
        stages = [[calling.cast(autocast, *conv) for conv in convs] for convs in stages]
        head = calling.cast(autocast, *head)
    except TypeError:
        _check_lists(horizontals, stages, head)
        raise
    checks.modes(upsample, padding_mode)
    threshold = None if threshold is None else checks.probability("threshold", threshold)
    _check_inputs(encoding, horizontals, windows, stages, head)
    if out is not None:
        _check_out(out, encoding, len(stages), threshold)

    weights, biases = zip(*itertools.chain(*stages, [head]), strict=True)
    arguments = (
        encoding,
        list(itertools.chain(*horizontals)),
        *(windows.image, windows.scale, windows.row, windows.col),
        *(list(weights), list(biases), [len(stage) for stage in stages]),
        *(upsample, padding_mode, threshold),
    )
    with calling.after_cast(encoding, autocast):
        return _call(arguments, encoding, out, backend)


def _check_lists(horizontals: Any, stages: Any, head: Any) -> None:
    """Name what is no list."""
    for i, levels in enumerate(checks.listed("horizontals", horizontals)):
        checks.listed(f"horizontals[{i}]", levels)
    for j, convs in enumerate(checks.listed("stages", stages)):
        for i, conv in enumerate(checks.listed(f"stages[{j}]", convs)):
            checks.listed(f"stages[{j}][{i}]", conv, calling.PAIR)
    checks.listed("head", head, calling.PAIR)


def _call(arguments: tuple[Any, ...], encoding: Tensor, out: Tensor | None, backend: str | None) -> Tensor:
    if calling.exporting():
        exported = reference.top_down_pass(*arguments)
        return exported if out is None else out.copy_(exported)
    chosen = dispatch.choose("refine_windows", encoding, backend)
    if out is None:
        result: Tensor = _REFINE_WINDOWS(*arguments, chosen)
        return result
    with torch.no_grad():
        _REFINE_WINDOWS_OUT(*arguments, out, chosen)
    return out


def _check_inputs(
    encoding: Tensor,
    horizontals: Sequence[Sequence[Tensor]],
    windows: Windows,
    stages: Sequence[Sequence[ConvParameters]],
    head: ConvParameters,
) -> None:
    checks.feature_map("encoding", encoding, "(N, K0, s, s)")
    count, channels, size, width = encoding.shape
    if size != width:
        raise checks.refusal("encoding", "square, (N, K0, s, s)", tuple(encoding.shape))
    if not horizontals:
        raise checks.refusal("horizontals", "one list of maps per scale", "an empty list")
    if not stages:
        raise checks.refusal("stages", "at least one stage", "an empty list")
    for i, levels in enumerate(horizontals):
        if len(levels) != len(stages):
            raise checks.refusal(f"horizontals[{i}]", f"of {len(stages)} maps, one per stage", len(levels))
    for j, convs in enumerate(stages):
        if not convs:
            raise checks.refusal(f"stages[{j}]", "at least one convolution", "an empty list")
        for i, conv in enumerate(convs):
            weight, bias = checks.pair(f"stages[{j}][{i}]", conv, calling.PAIR)
            checks.conv3x3(f"stages[{j}][{i}].", weight, bias, channels, None, encoding)
            channels = weight.shape[0]
        maps, name = [levels[j] for levels in horizontals], f"horizontals[:][{j}]"
        checks.pyramid(name, maps)
        checks.same_kind(name, maps[0], encoding)
        if maps[0].shape[1] != channels:
            raise checks.refusal(name, f"of {channels} channels", maps[0].shape[1])
        images = horizontals[0][0].shape[0]
        if maps[0].shape[0] != images:
            raise checks.refusal(name, f"of batch {images} like the first stage's", maps[0].shape[0])
    checks.conv3x3("head.", *checks.pair("head", head, calling.PAIR), channels, 1, encoding)
    checks.windows(windows, encoding.device, len(horizontals), horizontals[0][0].shape[0])
    checks.count(windows, count, "encoding")


def _check_out(out: Tensor, encoding: Tensor, stages: int, threshold: float | None) -> None:
    checks.tensor("out", out)
    shape, dtype = shape_of_windows(encoding, stages, threshold)
    if checks.shape_of("out", out) != shape:
        raise checks.refusal("out", f"of shape {shape}", tuple(out.shape))
    if out.dtype != dtype:
        raise checks.refusal("out", f"of dtype {dtype}", out.dtype)
    if out.device != encoding.device:
        raise checks.refusal("out", f"on device {encoding.device}", out.device)
    if not torch.compiler.is_compiling() and out.is_neg():
        raise checks.refusal("out", "without the bit of a lazy negation", "a view with it")
    if any(stride == 0 and size > 1 for stride, size in zip(out.stride(), out.shape, strict=True)):
        raise checks.refusal("out", "without elements that share memory", f"strides {out.stride()}")


def shape_of_windows(encoding: Tensor, stages: int, threshold: float | None) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and dtype of the result: logits, or bits if there is a ``threshold``."""
    count, side = encoding.shape[0], encoding.shape[-1] * 2**stages
    if threshold is not None:
        return (count, side, (side + 7) // 8), torch.uint8
    return (count, side, side), torch.float64 if encoding.dtype == torch.float64 else torch.float32


def empty_windows(encoding: Tensor, stages: int, threshold: float | None) -> Tensor:
    """The uninitialised result."""
    shape, dtype = shape_of_windows(encoding, stages, threshold)
    return encoding.new_empty(shape, dtype=dtype)


def _fake(a: Any) -> Tensor:
    return empty_windows(a.encoding, len(a.convs), a.threshold)


def _refine_windows(*arguments: Any) -> Tensor:
    given = _REFINE_WINDOWS.arguments(*arguments)
    out = _fake(given)
    registry.room(given.backend, "refine_windows").refine_windows(*arguments[:-1], out)
    return out


_REFINE_WINDOWS = define(
    reference.top_down_pass, _fake, name="refine_windows", run=_refine_windows, constants=("convs",)
)
_REFINE_WINDOWS_OUT = define(
    reference.refine_windows, lambda _: None, name="refine_windows_out", mutates="out", constants=("convs",)
)
_INFERENCE_ONLY = "refine_windows is for inference only; gather_windows and add_upsample have derivatives"
refuse_derivatives(_REFINE_WINDOWS, _INFERENCE_ONLY)
refuse_derivatives(_REFINE_WINDOWS_OUT, _INFERENCE_ONLY)


def _cases(random: Callable[..., Tensor], device: torch.device) -> Iterator[tuple[str, Case]]:
    windows = scattered_windows(device)
    widths = (16, 8, 4)
    for upsample, padding_mode in itertools.product(checks.UPSAMPLES, checks.PADDING_MODES):
        maps = [random(2, width, h << j, w << j) for h, w in ((9, 12), (6, 5)) for j, width in enumerate(widths[1:])]
        weights = [random(b, a, 3, 3) / (3 * a**0.5) for a, b in itertools.pairwise((*widths, 1))]
        inputs = [random(len(windows.row), widths[0], 4, 4), *maps, *weights]
        options = {"upsample": upsample, "padding_mode": padding_mode}

        def run(backend: str, *inputs: Tensor, options: dict[str, Any] = options) -> Tensor:
            encoding, a, b, c, d, first, second, head = (x.detach() for x in inputs)
            stages = [[(first, None)], [(second, None)]]
            return refine_windows(encoding, [[a, b], [c, d]], windows, stages, (head, None), **options, backend=backend)

        yield f"{upsample}, {padding_mode}", Case(inputs, run)


CASES = {"refine_windows": _cases}

"""``inverted_residual``: a whole block of a mobile trunk, whose wide hidden map stays in cache. For inference only."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .. import checks, dispatch, layout
from ..backends.reference import inverted_residual as reference
from . import calling
from .calling import ConvParameters
from .library import Case, define, refuse_derivatives

KERNELS = (3, 5)
STRIDES = (1, 2)


def inverted_residual(
    x: Tensor,
    expand: ConvParameters | None,
    depthwise: ConvParameters,
    project: ConvParameters,
    *,
    stride: int = 1,
    residual: bool = False,
    backend: str | None = None,
) -> Tensor:
    """The block of EfficientNet-Lite (Tan and Le, 2019; MobileNetV2's with ReLU6). For inference: no gradient.

    ReLU6(1x1 ``expand``), ReLU6(k x k ``depthwise``), 1x1 ``project``; with ``residual``, x is added. x (B, C, H, W);
    expand: weight (E, C, 1, 1) and bias (E) or None, or None for the whole (then E = C); depthwise: weight
    (E, 1, k, k), k 3 or 5; project: weight (O, E, 1, 1). -> (B, O, ceil(H / stride), ceil(W / stride)), ``stride`` 1
    or 2. The depthwise convolution is padded with zeros, (k - stride) // 2 before the first row and column, and
    k - 1 in all.
    """
    autocast = calling.autocast_dtype(x)
    (x,) = calling.cast(autocast, x)
    expand = None if expand is None else calling.cast(autocast, *checks.pair("expand", expand, calling.PAIR))
    depthwise = calling.cast(autocast, *checks.pair("depthwise", depthwise, calling.PAIR))
    project = calling.cast(autocast, *checks.pair("project", project, calling.PAIR))
    stride = checks.integer("stride", stride, 1, 2)
    _check(x, expand, depthwise, project, stride, residual)
    arguments = (x, *(expand or (None, None)), *depthwise, *project, stride, residual)
    with calling.after_cast(x, autocast):
        if calling.exporting():
            return reference.inverted_residual(*arguments)
        out: Tensor = _INVERTED_RESIDUAL(*arguments, dispatch.choose("inverted_residual", x, backend))
        return out


def _check(
    x: Tensor,
    expand: ConvParameters | None,
    depthwise: ConvParameters,
    project: ConvParameters,
    stride: int,
    residual: bool,
) -> None:
    checks.feature_map("x", x, "(B, C, H, W)")
    hidden = x.shape[1]
    if expand is not None:
        checks.conv("expand.", *expand, (None, hidden, 1, 1), x)
        hidden = expand[0].shape[0]
    checks.tensor("depthwise.weight", depthwise[0])
    sizes = checks.shape_of("depthwise.weight", depthwise[0])
    kernel = sizes[-1] if sizes else 0
    if kernel not in KERNELS:
        raise checks.refusal("depthwise.weight", f"of shape ({hidden}, 1, k, k), k 3 or 5", tuple(sizes))
    checks.conv("depthwise.", *depthwise, (hidden, 1, kernel, kernel), x)
    checks.conv("project.", *project, (None, hidden, 1, 1), x)
    if residual and (stride != 1 or project[0].shape[0] != x.shape[1]):
        came = f"stride {stride}, {x.shape[1]} and {project[0].shape[0]} channels"
        raise checks.refusal("residual", "False unless stride is 1 and x and the result have as many channels", came)


def _fake(a: Any) -> Tensor:
    batch, _, height, width = a.x.shape
    sizes = ((length + a.stride - 1) // a.stride for length in (height, width))
    return layout.empty((batch, a.project_weight.shape[0], *sizes), a.x, layout.memory_format(a.x))


_INVERTED_RESIDUAL = define(reference.inverted_residual, _fake)
refuse_derivatives(_INVERTED_RESIDUAL, "inverted_residual is for inference only; its plain form has gradients")


def _cases(random: Callable[..., Tensor], device: torch.device) -> Iterator[tuple[str, Case]]:
    for kernel, stride, expansion in itertools.product(KERNELS, STRIDES, (1, 3)):
        channels, outputs = 5, 5 if stride == 1 else 7
        hidden = channels * expansion
        inputs = [random(2, channels, 60, 90), 2 * random(hidden, 1, kernel, kernel) / kernel]
        inputs += [random(outputs, hidden, 1, 1) / hidden**0.5, random(hidden), random(outputs)]
        if expansion > 1:
            inputs += [2 * random(hidden, channels, 1, 1) / channels**0.5, random(hidden)]
        options = {"stride": stride, "residual": stride == 1}

        def run(backend: str, *inputs: Tensor, options: dict[str, Any] = options) -> Tensor:
            x, depthwise, project, depthwise_bias, project_bias, *expand = (i.detach() for i in inputs)
            pair = (expand[0], expand[1]) if expand else None
            convs = ((depthwise, depthwise_bias), (project, project_bias))
            return inverted_residual(x, pair, *convs, **options, backend=backend)

        yield f"kernel {kernel}, stride {stride}, expansion {expansion}", Case(inputs, run)


CASES = {"inverted_residual": _cases}

"""The public functions: check the arguments, choose the backend, call the op.

Maps are (batch, channels, height, width) tensors, fp32, fp16, bf16 or fp64. Convolutions are 3x3 with
stride 1 and padding 1. Names follow SharpMask (Pinheiro, Lin, Collobert, Dollár, ECCV 2016), section 3:
``feature`` F is a map of the bottom-up pass, ``skip`` S = ReLU(Conv(F)), ``mask`` M the mask encoding.

Arguments shared by all: ``upsample`` is "bilinear" (the paper; half-pixel centres) or "nearest" (the released
code); ``padding_mode`` is "zeros" (as ``nn.Conv2d``) or "replicate" (what SharpMask models use);
``backend`` names one backend, strictly, or is None: see :mod:`sharpmask_kernels.dispatch`. Bad arguments raise
``ValueError``, or ``TypeError`` where a tensor is due and something else came; a backend that cannot run here raises
``RuntimeError``.

Under autocast, the convolutions' arguments are cast as those of a convolution are: :func:`merge_upsample`,
:func:`refine` and :func:`refine_windows` compute in the autocast dtype, :func:`add_upsample` in what the sum of
``horizontal`` and a convolution would have. fp64 is left alone. While a model is exported, plain PyTorch operations
take the place of the ops, so that the exported graph needs nothing from here.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from . import checks, dispatch, ops
from .backends import reference
from .windows import Windows

ConvParameters = tuple[Tensor, Tensor | None]

_ops = torch.ops.sharpmask


def _exporting() -> bool:
    return torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export() or torch.jit.is_tracing()


def _autocast_dtype(x: object) -> torch.dtype | None:
    """The dtype that a convolution of ``x`` would have, where autocast is on."""
    if not isinstance(x, Tensor) or x.dtype == torch.float64 or x.device.type == "meta":
        return None
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def _cast(dtype: torch.dtype | None, *inputs: Any) -> tuple[Any, ...]:
    """The tensors in the autocast ``dtype``; fp64, integers and what is no tensor stay as they are."""
    if dtype is None:
        return inputs
    castable = (isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64 for x in inputs)
    return tuple(x.to(dtype) if yes else x for x, yes in zip(inputs, castable, strict=True))


def _as_cast(like: Tensor, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Where autocast casts no further what has been cast already."""
    return nullcontext() if dtype is None else torch.autocast(like.device.type, enabled=False)


def _refinement(
    op: str,
    inputs: tuple[Tensor | None, ...],
    like: Tensor,
    upsample: str,
    padding_mode: str,
    autocast: torch.dtype | None,
    backend: str | None,
) -> Tensor:
    """Call one of the three refinement ops, which share their options and what they save."""
    # A backward may come: the op has to keep something for it.
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    with _as_cast(like, autocast):
        if _exporting():
            return getattr(reference, op)(*inputs, upsample, padding_mode, False)[0]
        chosen = dispatch.choose(op, like, backend)
        return getattr(_ops, op)(*inputs, upsample, padding_mode, save, chosen)[0]


def merge_upsample(
    skip: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    upsample: str = "bilinear",
    padding_mode: str = "zeros",
    backend: str | None = None,
) -> Tensor:
    """upsample2x(ReLU(Conv(Concat(S, M)))), the refinement module after its skip (section 3.2).

    skip (B, Ks, H, W), mask (B, Km, H, W), weight (Ko, Ks + Km, 3, 3), bias (Ko) or None
    -> (B, Ko, 2H, 2W). Differentiable in every tensor.
    """
    autocast = _autocast_dtype(skip)
    skip, mask, weight, bias = _cast(autocast, skip, mask, weight, bias)
    checks.modes(upsample, padding_mode)
    checks.feature_map("skip", skip, "(B, Ks, H, W)")
    checks.feature_map("mask", mask, "(B, Km, H, W)", like=skip)
    checks.conv3x3("", weight, bias, skip.shape[1] + mask.shape[1], None, skip)
    inputs = (skip, mask, weight, bias)
    return _refinement("merge_upsample", inputs, skip, upsample, padding_mode, autocast, backend)


def refine(
    feature: Tensor,
    mask: Tensor,
    skip_weight: Tensor,
    skip_bias: Tensor | None,
    merge_weight: Tensor,
    merge_bias: Tensor | None,
    *,
    upsample: str = "bilinear",
    padding_mode: str = "zeros",
    backend: str | None = None,
) -> Tensor:
    """The whole refinement module R(F, M) of section 3.2: S = ReLU(Conv(F)), then :func:`merge_upsample`.

    feature (B, Kf, H, W), mask (B, Km, H, W), skip_weight (Ks, Kf, 3, 3), merge_weight (Ko, Ks + Km, 3, 3),
    biases (Ks), (Ko) or None -> (B, Ko, 2H, 2W). Differentiable in every tensor.
    """
    autocast = _autocast_dtype(feature)
    inputs = _cast(autocast, feature, mask, skip_weight, skip_bias, merge_weight, merge_bias)
    feature, mask, skip_weight, skip_bias, merge_weight, merge_bias = inputs
    checks.modes(upsample, padding_mode)
    checks.feature_map("feature", feature, "(B, Kf, H, W)")
    checks.feature_map("mask", mask, "(B, Km, H, W)", like=feature)
    checks.conv3x3("skip_", skip_weight, skip_bias, feature.shape[1], None, feature)
    checks.conv3x3("merge_", merge_weight, merge_bias, skip_weight.shape[0] + mask.shape[1], None, feature)
    return _refinement("refine", inputs, feature, upsample, padding_mode, autocast, backend)


def add_upsample(
    horizontal: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    upsample: str = "bilinear",
    padding_mode: str = "zeros",
    backend: str | None = None,
) -> Tensor:
    """upsample2x(ReLU(horizontal + Conv(M))): :func:`merge_upsample` with its convolution split in two.

    Conv(Concat(S, M)) = Conv_S(S) + Conv_M(M). The first half, ``horizontal`` (B, Ko, H, W), does not depend
    on the window and is computed once per image (section 3.3); it carries the bias. Also the merge of the
    released code. mask (B, Km, H, W), weight (Ko, Km, 3, 3), bias (Ko) or None -> (B, Ko, 2H, 2W).
    Differentiable in every tensor.
    """
    autocast = _autocast_dtype(horizontal)
    if autocast is not None:
        autocast = torch.promote_types(autocast, horizontal.dtype)
    horizontal, mask, weight, bias = inputs = _cast(autocast, horizontal, mask, weight, bias)
    checks.modes(upsample, padding_mode)
    checks.feature_map("horizontal", horizontal, "(B, Ko, H, W)")
    checks.feature_map("mask", mask, "(B, Km, H, W)", like=horizontal)
    checks.conv3x3("", weight, bias, mask.shape[1], horizontal.shape[1], horizontal)
    return _refinement("add_upsample", inputs, horizontal, upsample, padding_mode, autocast, backend)


def topk_windows(scores: Sequence[Tensor], n: int) -> Windows:
    """The ``n`` best windows of every image, over all scales.

    scores: one (B, 1, h, w) map per scale. Gives exactly B * min(n, cells) windows, images one after
    another, best first, equal scores in the order scale, row, column. NaN ranks as -inf; such rows carry the
    score -inf and are the caller's to drop. Nothing waits for the device.
    """
    checks.pyramid("scores", scores)
    if scores[0].shape[1] != 1:
        raise checks.refusal("scores", "of one channel", scores[0].shape[1])
    checks.at_least("n", n, 0)
    scores = [s.detach() for s in scores]
    return Windows(*(reference.topk_windows if _exporting() else _ops.topk_windows)(scores, n))


def gather_windows(
    maps: Tensor | Sequence[Tensor],
    windows: Windows,
    size: int,
    *,
    step: int = 1,
    backend: str | None = None,
) -> Tensor:
    """Cut every window out of its map: the top-N gather.

    maps: one (B, C, H, W) per scale, or one tensor. ``size``: map cells on a window's side. ``step``: map
    cells per grid cell. -> (N, C, size, size): window i holds the cells from (row * step, col * step) on of
    image ``image`` at scale ``scale``, zero where it leaves its map. Differentiable in maps.
    """
    maps = [maps] if isinstance(maps, Tensor) else list(maps)
    checks.pyramid("maps", maps)
    checks.at_least("size", size, 1)
    checks.at_least("step", step, 1)
    checks.windows(windows, maps[0].device, len(maps), maps[0].shape[0])
    _, image, scale, row, col = windows
    arguments = (maps, image, scale, row, col, size, step)
    if _exporting():
        return reference.gather_windows(*arguments)
    return _ops.gather_windows(*arguments, dispatch.choose("gather_windows", maps[0], backend))


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
    autocast = _autocast_dtype(encoding)
    (encoding,) = _cast(autocast, encoding)
    horizontals = [_cast(autocast, *levels) for levels in horizontals]
    stages = [[_cast(autocast, *conv) for conv in convs] for convs in stages]
    head = _cast(autocast, *head)
    checks.modes(upsample, padding_mode)
    checks.probability("threshold", threshold)
    _check_cascade(encoding, horizontals, windows, stages, head)
    if out is not None:
        _check_out(out, encoding, len(stages), threshold)

    weights, biases = zip(*itertools.chain(*stages, [head]), strict=True)
    maps = list(itertools.chain(*horizontals))
    convs = [len(stage) for stage in stages]
    _, image, scale, row, col = windows
    parameters = (list(weights), list(biases), convs, upsample, padding_mode, threshold)
    arguments = (encoding, maps, image, scale, row, col, *parameters)
    with _as_cast(encoding, autocast):
        if _exporting():
            result = reference.cascade(*arguments)
            return result if out is None else out.copy_(result)
        chosen = dispatch.choose("refine_windows", encoding, backend)
        if out is None:
            return _ops.refine_windows(*arguments, chosen)
        with torch.no_grad():
            _ops.refine_windows_out(*arguments, out, chosen)
    return out


def _check_cascade(
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
        for i, (weight, bias) in enumerate(convs):
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
    checks.conv3x3("head.", head[0], head[1], channels, 1, encoding)
    checks.windows(windows, encoding.device, len(horizontals), horizontals[0][0].shape[0])
    checks.count(windows, count, "encoding")


def _check_out(out: Tensor, encoding: Tensor, stages: int, threshold: float | None) -> None:
    shape, dtype = ops.shape_of_windows(encoding, stages, threshold)
    if out.shape != shape:
        raise checks.refusal("out", f"of shape {shape}", tuple(out.shape))
    if out.dtype != dtype:
        raise checks.refusal("out", f"of dtype {dtype}", out.dtype)
    if out.device != encoding.device:
        raise checks.refusal("out", f"on device {encoding.device}", out.device)
    if any(stride == 0 and size > 1 for stride, size in zip(out.stride(), out.shape, strict=True)):
        raise checks.refusal("out", "without elements that share memory", f"strides {out.stride()}")


def encode_windows(
    logits: Tensor,
    windows: Windows,
    image_size: tuple[int, int],
    scales: Sequence[float],
    *,
    threshold: float = 0.2,
    backend: str | None = None,
) -> list[dict[str, Any]]:
    """Paste every window's mask into its image and run-length encode it.

    logits (N, S, S), S even. All windows are of ONE image of ``image_size`` (h, w); ``windows.image`` is
    ignored. ``scales``: the pyramid's scales. An image pixel is foreground where it lies in the window and
    the bilinear sample of the logits there exceeds log(t / (1 - t)) for the probability ``threshold`` t.

    -> COCO RLE ``{"size": [h, w], "counts": bytes}`` per window. Ends on the host, so it waits for the device.
    """
    checks.probability("threshold", threshold)
    shape = tuple(logits.shape)
    if logits.ndim != 3 or shape[1] != shape[2] or shape[1] < 2 or shape[1] % 2:
        raise checks.refusal("logits", "of shape (N, S, S) with S even", shape)
    if not logits.is_floating_point():
        raise checks.refusal("logits", "floating point", logits.dtype)
    if min(image_size) < 1:
        raise checks.refusal("image_size", "at least 1x1", tuple(image_size))
    if image_size[0] * image_size[1] >= 1 << 32:  # COCO counts in 32 bits
        raise checks.refusal("image_size", "of fewer than 2^32 pixels", tuple(image_size))
    if not all(0 < scale < float("inf") for scale in scales):
        raise checks.refusal("scales", "positive", list(scales))
    checks.windows(windows, logits.device, len(scales), None)
    checks.count(windows, shape[0], "mask")
    chosen = dispatch.choose("encode_windows", logits, backend)
    _, _, scale, row, col = windows
    counts, offsets = _ops.encode_windows(
        logits.detach(), scale, row, col, list(image_size), list(scales), threshold, chosen
    )
    data, ends = counts.numpy().tobytes(), offsets.tolist()
    size = list(image_size)
    return [{"size": size.copy(), "counts": data[a:b]} for a, b in itertools.pairwise(ends)]

"""Argument checks shared by functions, modules and backends: one text per refusal.

Every message names the argument, what was expected and what came.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .windows import Windows

UPSAMPLES = ("bilinear", "nearest")
PADDING_MODES = ("zeros", "replicate")
DECODER_UPSAMPLES = (*UPSAMPLES, "bilinear_corners")
ACTIVATIONS = ("relu", "elu", "leaky_relu", "silu", "none")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MOST = 2**63 - 1
_STRIDED = torch.strided


def refusal(name: str, expected: str, came: object) -> ValueError:
    return ValueError(f"{name} must be {expected}, got {came}")


def choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise refusal(name, "one of " + ", ".join(map(repr, choices)), repr(value))


def integer(name: str, value: Any, least: int | None, most: int | None = MOST) -> int:
    """``value`` as an integer from ``least`` to ``most``; by default, 64 bits hold it."""
    if type(value) is int and (least is None or least <= value) and (most is None or value <= most):
        return value  # the quick way
    if not isinstance(value, (int, torch.SymInt)):
        value = _index(name, value)
    if value is True or value is False:
        raise TypeError(f"{name} must be an integer, got {value}")
    if least is not None and value < least:
        raise refusal(name, f"at least {least}", value)
    if most is not None and value > most:
        raise refusal(name, f"at most {most}", value)
    return value


def _index(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {_described(value)}") from None


def number(name: str, value: Any) -> float:
    """``value`` as a real number."""
    if isinstance(value, (bool, str)):
        raise TypeError(f"{name} must be a number, got {_described(value)}")
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):  # the last for tensors of several numbers
        raise TypeError(f"{name} must be a number, got {_described(value)}") from None
    except OverflowError:
        raise refusal(name, "a number that a float can hold", value) from None


def _described(value: object) -> str:
    """Numbers and texts themselves, of all else the type."""
    return repr(value) if isinstance(value, (bool, float, complex, str)) else type(value).__name__


def listed(name: str, values: Any, expected: str = "a list") -> list[Any]:
    try:
        return list(values)
    except TypeError:
        raise TypeError(f"{name} must be {expected}, got {type(values).__name__}") from None


def pair(name: str, values: Any, expected: str) -> tuple[Any, Any]:
    """Two values; ``expected`` describes them."""
    if not isinstance(values, tuple):
        values = listed(name, values, expected)
    if len(values) != 2:
        raise refusal(name, expected, f"{len(values)} values")
    return values[0], values[1]


def modes(upsample: str, padding_mode: str) -> None:
    choice("upsample", upsample, UPSAMPLES)
    choice("padding_mode", padding_mode, PADDING_MODES)


def tensor(name: str, x: Any) -> None:
    """A tensor that holds its elements one by one: none of PyTorch's sparse, MKL-DNN and jagged ones."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.layout is not _STRIDED:
        raise refusal(name, f"a tensor of layout {_STRIDED}", x.layout)


def shape_of(name: str, x: Tensor) -> torch.Size:
    try:
        return x.shape
    except RuntimeError:
        raise refusal(name, "a tensor of one shape", "a nested tensor") from None


def floating_point(name: str, x: Tensor) -> None:
    if x.dtype not in DTYPES:
        expected = "of dtype " + ", ".join(map(str, DTYPES)) if x.is_floating_point() else "floating point"
        raise refusal(name, expected, x.dtype)


def feature_map(name: str, x: Any, shape: str, like: Tensor | None = None) -> None:
    """A floating-point tensor of rank 4; with ``like``, of its dtype, device, batch, height and width."""
    tensor(name, x)
    sizes = shape_of(name, x)
    if len(sizes) != 4:
        raise refusal(name, f"of shape {shape}", tuple(sizes))
    floating_point(name, x)
    batch, channels, height, width = sizes
    if channels < 1 or height < 1 or width < 1:
        raise refusal(name, f"of shape {shape} with no empty dimension but the batch", tuple(sizes))
    if like is not None:
        same_kind(name, x, like)
        like_batch, _, like_height, like_width = like.shape
        if batch != like_batch or height != like_height or width != like_width:
            raise refusal(name, f"of batch {like_batch} and size {(like_height, like_width)}", tuple(sizes))


def same_kind(name: str, x: Tensor, like: Tensor) -> None:
    if x.dtype != like.dtype:
        raise refusal(name, f"of dtype {like.dtype} like the other tensors", x.dtype)
    if x.device != like.device:
        raise refusal(name, f"on device {like.device} like the other tensors", x.device)


def conv3x3(
    name: str, weight: Tensor, bias: Tensor | None, in_channels: int, out_channels: int | None, like: Tensor
) -> None:
    """Weight (out_channels, in_channels, 3, 3) and bias (out_channels) or None."""
    conv(name, weight, bias, (out_channels, in_channels, 3, 3), like)


def conv(name: str, weight: Tensor, bias: Tensor | None, shape: tuple[int | None, int, int, int], like: Tensor) -> None:
    """Weight of ``shape`` (out_channels, in_channels, height, width) and bias (out_channels) or None.

    out_channels None: any number from 1 up.
    """
    if _is_conv(weight, bias, shape, like):
        return  # the quick way
    tensor(f"{name}weight", weight)
    sizes = shape_of(f"{name}weight", weight)
    outputs, *rest = shape
    known = len(sizes) == 4 and sizes[0] >= 1 and list(sizes[1:]) == rest
    if not known or outputs not in (None, sizes[0]):
        expected = ", ".join(map(str, ("out_channels" if outputs is None else outputs, *rest)))
        raise refusal(f"{name}weight", f"of shape ({expected})", tuple(sizes))
    same_kind(f"{name}weight", weight, like)
    if bias is not None:
        tensor(f"{name}bias", bias)
        if shape_of(f"{name}bias", bias) != sizes[:1]:
            raise refusal(f"{name}bias", f"of shape {tuple(sizes[:1])}", tuple(bias.shape))
        same_kind(f"{name}bias", bias, like)


def _is_conv(weight: Any, bias: Any, shape: tuple[int | None, int, int, int], like: Tensor) -> bool:
    """Whether weight and bias pass the checks of :func:`conv`, which name what does not."""
    if not _is_like(weight, like) or (bias is not None and not _is_like(bias, like)):
        return False
    outputs, inputs, height, width = shape
    sizes = weight.shape
    if len(sizes) != 4 or sizes[0] < 1 or sizes[1] != inputs or sizes[2] != height or sizes[3] != width:
        return False
    return (outputs is None or sizes[0] == outputs) and (bias is None or bias.shape == sizes[:1])


def _is_like(x: Any, like: Tensor) -> bool:
    return (
        isinstance(x, Tensor)
        and x.layout is _STRIDED
        and not x.is_nested
        and x.dtype == like.dtype
        and x.device == like.device
    )


def pyramid(name: str, maps: Sequence[Tensor]) -> None:
    """One (B, C, H, W) map per scale, alike in batch, channels, dtype and device."""
    if not maps:
        raise refusal(name, "at least one map", "an empty list")
    kind = None
    for i, m in enumerate(maps):
        if kind is not None and _kind(m) == kind:
            continue  # the quick way, as most often all maps are alike
        feature_map(f"{name}[{i}]", m, "(B, C, H, W)")
        same_kind(f"{name}[{i}]", m, maps[0])
        if m.shape[:2] != maps[0].shape[:2]:
            raise refusal(f"{name}[{i}]", f"of batch and channels {tuple(maps[0].shape[:2])}", tuple(m.shape))
        kind = _kind(m)


def _kind(x: Any) -> tuple[object, ...] | None:
    """Equal for maps of the same dtype, device, batch and channels; None for what is no map."""
    if not isinstance(x, Tensor) or x.ndim != 4 or x.layout is not _STRIDED or x.is_nested:
        return None
    batch, channels, height, width = x.shape
    return x.dtype, x.device, batch, channels, height > 0 and width > 0


def windows(w: Any, device: torch.device, scales: int, batch: int | None) -> None:
    """Windows of equal lengths and the right dtypes on ``device``. Their values are checked on the CPU only, where
    reading them waits for nothing. ``batch`` None: image indices are not checked."""
    if not isinstance(w, Windows):
        raise TypeError(f"windows must be a Windows, got {type(w).__name__}")
    count = None
    for name, field in zip(Windows._fields, w, strict=True):
        if not isinstance(field, Tensor) or field.layout is not _STRIDED or field.ndim != 1:
            tensor(f"windows.{name}", field)
            raise refusal(f"windows.{name}", "one value per window", tuple(shape_of(f"windows.{name}", field)))
        try:
            sizes = field.shape
        except RuntimeError:  # nested
            sizes = shape_of(f"windows.{name}", field)
        dtype = torch.int64 if count is not None else torch.float32
        count = sizes[0] if count is None else count
        if sizes[0] != count:
            raise refusal(f"windows.{name}", "one value per window", tuple(sizes))
        if field.dtype != dtype:
            raise refusal(f"windows.{name}", f"of dtype {dtype}", field.dtype)
        if field.device != device:
            raise refusal(f"windows.{name}", f"on device {device}", field.device)
    if device.type != "cpu" or torch.compiler.is_compiling() or count == 0 or not has_values(w.scale):
        return
    for name, limit in (("scale", scales), ("image", batch)):
        if limit is not None:
            values = getattr(w, name).tolist()
            low, high = min(values), max(values)
            if low < 0 or high >= limit:
                raise refusal(f"windows.{name}", f"within 0..{limit - 1}", f"{low}..{high}")


def has_values(x: Tensor) -> bool:
    """Whether the values of ``x`` can be read: not while PyTorch transforms, nor of fake and distributed tensors."""
    return type(x).__torch_dispatch__ is Tensor.__torch_dispatch__ and not torch._C._are_functorch_transforms_active()


def count(w: Windows, expected: int, what: str) -> None:
    if w.score.shape[0] != expected:
        raise refusal("windows", f"{expected} windows, one per {what}", w.score.shape[0])


def probability(name: str, value: Any) -> float:
    found = number(name, value)
    if not 0 < found < 1:
        raise refusal(name, "strictly between 0 and 1", value)
    return found

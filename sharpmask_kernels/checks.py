"""Argument checks shared by functions, modules and backends: one text per refusal.

Every message names the argument, what was expected and what came.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .windows import Windows

UPSAMPLES = ("bilinear", "nearest")
PADDING_MODES = ("zeros", "replicate")


def refusal(name: str, expected: str, came: object) -> ValueError:
    return ValueError(f"{name} must be {expected}, got {came}")


def choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise refusal(name, "one of " + ", ".join(map(repr, choices)), repr(value))


def at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise refusal(name, f"at least {least}", value)


def modes(upsample: str, padding_mode: str) -> None:
    choice("upsample", upsample, UPSAMPLES)
    choice("padding_mode", padding_mode, PADDING_MODES)


def tensor(name: str, x: object) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")


def feature_map(name: str, x: Any, shape: str, like: Tensor | None = None) -> None:
    """A floating-point tensor of rank 4; with ``like``, of its dtype, device, batch, height and width."""
    tensor(name, x)
    if x.ndim != 4:
        raise refusal(name, f"of shape {shape}", tuple(x.shape))
    if not x.is_floating_point():
        raise refusal(name, "floating point", x.dtype)
    if min(x.shape[1:]) < 1:
        raise refusal(name, f"of shape {shape} with no empty dimension but the batch", tuple(x.shape))
    if like is not None:
        same_kind(name, x, like)
        if x.shape[0] != like.shape[0] or x.shape[2:] != like.shape[2:]:
            raise refusal(name, f"of batch {like.shape[0]} and size {tuple(like.shape[2:])}", tuple(x.shape))


def same_kind(name: str, x: Tensor, like: Tensor) -> None:
    if x.dtype != like.dtype:
        raise refusal(name, f"of dtype {like.dtype} like the other tensors", x.dtype)
    if x.device != like.device:
        raise refusal(name, f"on device {like.device} like the other tensors", x.device)


def conv3x3(
    name: str, weight: Tensor, bias: Tensor | None, in_channels: int, out_channels: int | None, like: Tensor
) -> None:
    """Weight (out_channels, in_channels, 3, 3) and bias (out_channels) or None."""
    tensor(f"{name}weight", weight)
    known = weight.ndim == 4 and weight.shape[0] >= 1 and weight.shape[1:] == (in_channels, 3, 3)
    if not known or out_channels not in (None, weight.shape[0]):
        outs = "out_channels" if out_channels is None else out_channels
        raise refusal(f"{name}weight", f"of shape ({outs}, {in_channels}, 3, 3)", tuple(weight.shape))
    same_kind(f"{name}weight", weight, like)
    if bias is not None:
        tensor(f"{name}bias", bias)
        if bias.shape != weight.shape[:1]:
            raise refusal(f"{name}bias", f"of shape {tuple(weight.shape[:1])}", tuple(bias.shape))
        same_kind(f"{name}bias", bias, like)


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
    if not isinstance(x, Tensor) or x.ndim != 4:
        return None
    batch, channels, height, width = x.shape
    return x.dtype, x.device, batch, channels, height > 0 and width > 0


def windows(w: Windows, device: torch.device, scales: int, batch: int | None) -> None:
    """Windows of equal lengths and the right dtypes on ``device``. Their values are checked on the CPU only, where
    reading them waits for nothing. ``batch`` None: image indices are not checked."""
    count = w.score.shape[0] if w.score.ndim == 1 else -1
    for name, field in zip(Windows._fields, w, strict=True):
        dtype = torch.float32 if name == "score" else torch.int64
        if field.ndim != 1 or field.shape[0] != count:
            raise refusal(f"windows.{name}", "one value per window", tuple(field.shape))
        if field.dtype != dtype:
            raise refusal(f"windows.{name}", f"of dtype {dtype}", field.dtype)
        if field.device != device:
            raise refusal(f"windows.{name}", f"on device {device}", field.device)
    if device.type != "cpu" or torch.compiler.is_compiling() or count == 0:
        return
    for name, limit in (("scale", scales), ("image", batch)):
        if limit is not None and has_values(getattr(w, name)):
            values = getattr(w, name).tolist()
            low, high = min(values), max(values)
            if low < 0 or high >= limit:
                raise refusal(f"windows.{name}", f"within 0..{limit - 1}", f"{low}..{high}")


def has_values(x: Tensor) -> bool:
    """Whether the values of ``x`` can be read: not while PyTorch transforms, nor of fake and distributed tensors."""
    return type(x).__torch_dispatch__ is Tensor.__torch_dispatch__ and not torch._C._are_functorch_transforms_active()


def count(w: Windows, expected: int, what: str) -> None:
    if len(w.score) != expected:
        raise refusal("windows", f"{expected} windows, one per {what}", len(w.score))


def probability(name: str, value: float | None) -> None:
    if value is not None and not 0 < value < 1:
        raise refusal(name, "strictly between 0 and 1", value)

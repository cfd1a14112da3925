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


def require(condition: bool, name: str, expected: str, came: object) -> None:
    if not condition:
        raise ValueError(f"{name} must be {expected}, got {came}")


def choice(name: str, value: str, choices: Sequence[str]) -> None:
    require(value in choices, name, "one of " + ", ".join(map(repr, choices)), repr(value))


def modes(upsample: str, padding_mode: str) -> None:
    choice("upsample", upsample, UPSAMPLES)
    choice("padding_mode", padding_mode, PADDING_MODES)


def tensor(name: str, x: object) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")


def feature_map(name: str, x: Any, shape: str, like: Tensor | None = None) -> None:
    """A floating-point tensor of rank 4; with ``like``, of its dtype, device, batch, height and width."""
    tensor(name, x)
    require(x.ndim == 4, name, f"of shape {shape}", tuple(x.shape))
    require(x.is_floating_point(), name, "floating point", x.dtype)
    require(min(x.shape[1:]) >= 1, name, f"of shape {shape} with no empty dimension but the batch", tuple(x.shape))
    if like is not None:
        same_kind(name, x, like)
        require(
            x.shape[0] == like.shape[0] and x.shape[2:] == like.shape[2:],
            name,
            f"of batch {like.shape[0]} and size {tuple(like.shape[2:])}",
            tuple(x.shape),
        )


def same_kind(name: str, x: Tensor, like: Tensor) -> None:
    require(x.dtype == like.dtype, name, f"of dtype {like.dtype} like the other tensors", x.dtype)
    require(x.device == like.device, name, f"on device {like.device} like the other tensors", x.device)


def conv3x3(
    name: str, weight: Tensor, bias: Tensor | None, in_channels: int, out_channels: int | None, like: Tensor
) -> None:
    """Weight (out_channels, in_channels, 3, 3) and bias (out_channels) or None."""
    tensor(f"{name}weight", weight)
    outs = "out_channels" if out_channels is None else str(out_channels)
    require(
        weight.ndim == 4
        and weight.shape[0] >= 1
        and tuple(weight.shape[1:]) == (in_channels, 3, 3)
        and out_channels in (None, weight.shape[0]),
        f"{name}weight",
        f"of shape ({outs}, {in_channels}, 3, 3)",
        tuple(weight.shape),
    )
    same_kind(f"{name}weight", weight, like)
    if bias is not None:
        tensor(f"{name}bias", bias)
        expected = (weight.shape[0],)
        require(tuple(bias.shape) == expected, f"{name}bias", f"of shape {expected}", tuple(bias.shape))
        same_kind(f"{name}bias", bias, like)


def pyramid(name: str, maps: Sequence[Tensor]) -> None:
    """One (B, C, H, W) map per scale, alike in batch, channels, dtype and device."""
    require(len(maps) >= 1, name, "at least one map", "an empty list")
    for i, m in enumerate(maps):
        feature_map(f"{name}[{i}]", m, "(B, C, H, W)")
        same_kind(f"{name}[{i}]", m, maps[0])
        require(
            m.shape[:2] == maps[0].shape[:2],
            f"{name}[{i}]",
            f"of batch and channels {tuple(maps[0].shape[:2])}",
            tuple(m.shape),
        )


def windows(w: Windows, device: torch.device, scales: int, batch: int | None) -> None:
    """Windows of equal lengths and the right dtypes on ``device``; their values too on the CPU, where reading
    them does not synchronise. ``batch`` None: images are not looked at."""
    count = w.score.shape[0] if w.score.ndim == 1 else -1
    for name, field in zip(Windows._fields, w, strict=True):
        dtype = torch.float32 if name == "score" else torch.int64
        require(
            field.ndim == 1 and len(field) == count,
            f"windows.{name}",
            "one value per window",
            tuple(field.shape),
        )
        require(field.dtype == dtype, f"windows.{name}", f"of dtype {dtype}", field.dtype)
        require(field.device == device, f"windows.{name}", f"on device {device}", field.device)
    if device.type != "cpu" or count == 0 or torch.compiler.is_compiling():
        return
    for name, limit in (("scale", scales), ("image", batch)):
        if limit is not None:
            field = getattr(w, name)
            low, high = int(field.min()), int(field.max())
            require(low >= 0 and high < limit, f"windows.{name}", f"within 0..{limit - 1}", f"{low}..{high}")


def probability(name: str, value: float | None) -> None:
    if value is not None:
        require(0 < value < 1, name, "strictly between 0 and 1", value)

"""What the code that :func:`fuse` generates calls: an op where the sizes fit it, else what the user wrote."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import checks
from ..functional import upsample_add, upsample_merge
from ..ops.calling import exporting
from .folding import foldable, folded

Dropouts = tuple[nn.Dropout | nn.Dropout2d, ...]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu_,
    "elu": F.elu_,
    "leaky_relu": F.leaky_relu_,
    "silu": F.silu,
}
"""In place where PyTorch keeps no copy of the input for the backward."""


def merged(
    mask: Tensor,
    size: Any,
    pad: tuple[Sequence[int], str] | None,
    rest: tuple[Tensor, ...],
    gate: Tensor | None,
    *,
    conv: nn.Conv2d,
    norm: nn.BatchNorm2d | None,
    dropouts: tuple[Dropouts, Dropouts, Dropouts],
    position: int,
    padding: str,
    padded: bool,
    mode: str,
    align_corners: bool | None,
    activation: str,
) -> Tensor:
    """act(dropout(norm(conv(cat[..., up2(mask) * gate, ...])))), the upsampled map at ``position`` among the ``rest``.

    A ``gate`` has one value for each channel. ``dropouts`` are those of the upsampled map, of the concatenation and of
    the convolution's result; ``padded`` says that a layer of its own pads before the convolution.
    """
    before, after, last = dropouts
    small = _gated(mask, gate)
    fits = small is not None and _fits(small, size, rest, 2 if padding == "reflect" else 1)
    if small is None or not fits or not _convolves(conv, small, rest) or _drops(before + after) or _pads(pad):
        x = _upsampled(mask, size, mode, align_corners)
        x = _dropped(x if gate is None else x * gate, before)
        x = x if pad is None else F.pad(x, list(pad[0]), pad[1])
        x = _dropped(torch.cat([*rest[:position], x, *rest[position:]], 1), after) if rest or after else x
        x = conv(_padded(x, 1, padding) if padded else x)
        return _finished(x, norm, last, activation)
    folds = norm is not None and foldable(norm)
    weight, bias = folded(conv, norm) if folds and norm is not None else (conv.weight, conv.bias)
    left = None if folds else norm
    early = left is None and not _drops(last)  # the op can compute the activation too
    x = _merge(
        small, rest, weight, bias, position, padding, op_mode(mode, align_corners), activation if early else "none"
    )
    return x if early else _finished(x, left, last, activation)


def _merge(
    mask: Tensor,
    rest: tuple[Tensor, ...],
    weight: Tensor,
    bias: Tensor | None,
    position: int,
    padding: str,
    upsample: str,
    activation: str,
) -> Tensor:
    skip = None if not rest else rest[0] if len(rest) == 1 else torch.cat(rest, 1)
    if 0 < position < len(rest):
        start = sum(x.shape[1] for x in rest[:position])
        stop = start + mask.shape[1]
        weight, position = torch.cat([weight[:, start:stop], weight[:, :start], weight[:, stop:]], 1), 0
    options: dict[str, Any] = {"mask_first": position == 0, "upsample": upsample, "activation": activation}
    if padding != "reflect":
        return upsample_merge(mask, skip, weight, bias, padding_mode=padding, **options)
    # Nearest only: reflecting the upsampled map repeats the small one's border, as replicating it does.
    if skip is None:
        return upsample_merge(mask, None, weight, bias, padding_mode="replicate", **options)
    # The op's own border is cut off.
    skip, mask = F.pad(skip, (2, 2, 2, 2), "reflect"), _padded(mask, 1, "replicate")
    return upsample_merge(mask, skip, weight, bias, **options)[:, :, 2:-2, 2:-2]


def added(
    mask: Tensor,
    size: Any,
    lateral: Tensor,
    *,
    mode: str,
    align_corners: bool | None = None,
    dropouts: tuple[Dropouts, Dropouts] = ((), ()),
    activation: str = "none",
) -> Tensor:
    """act(dropout(up2(mask) + lateral))."""
    before, last = dropouts
    if not _fits(mask, size, (lateral,)) or lateral.shape[1] != mask.shape[1] or _drops(before):
        return _finished(
            _dropped(_upsampled(mask, size, mode, align_corners), before) + lateral, None, last, activation
        )
    early = not _drops(last)
    x = upsample_add(mask, lateral, upsample=op_mode(mode, align_corners), activation=activation if early else "none")
    return x if early else _finished(x, None, last, activation)


def projected(
    mask: Tensor,
    size: Any,
    *,
    conv: nn.Conv2d,
    norm: nn.BatchNorm2d | None,
    dropouts: Dropouts,
    mode: str,
    align_corners: bool | None,
    activation: str,
) -> Tensor:
    """act(dropout(norm(conv(up2(mask))))) with a 1x1 convolution, which gives the same before the upsampling."""
    if _fits(mask, size, ()):
        x = _upsampled(conv(mask), size, mode, align_corners)
    else:
        x = conv(_upsampled(mask, size, mode, align_corners))
    return _finished(x, norm, dropouts, activation)


def normalised(x: Tensor, *, conv: nn.Conv2d, norm: nn.BatchNorm2d, dropouts: Dropouts, activation: str) -> Tensor:
    """act(dropout(norm(conv(x)))), a convolution without an upsampling, padded with zeros."""
    if exporting() or not foldable(norm):
        return _finished(conv(x), norm, dropouts, activation)
    weight, bias = folded(conv, norm)
    x = F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    return _finished(x, None, dropouts, activation)


def with_same_average(mask: Tensor, size: Any, *, mode: str) -> Tensor:
    """A map whose channels average to the same as the upsampled map's, where ``mode`` is one of the nearest."""
    return mask if _fits(mask, size, ()) else _upsampled(mask, size, mode, None)


def upsampled_shape(mask: Tensor, size: Any, dim: int | None = None) -> Any:
    """The shape of the upsampled map, or its size along ``dim``."""
    height, width = _doubled(mask) if size is None else (size, size) if isinstance(size, int) else tuple(size)
    shape = torch.Size((*mask.shape[:2], height, width))
    return shape if dim is None else shape[dim]


def op_mode(mode: str, align_corners: bool | None) -> str:
    """The op's name of PyTorch's way to upsample."""
    if mode == "bilinear":
        return "bilinear_corners" if align_corners else "bilinear"
    return "nearest"


def _fits(mask: Tensor, size: Any, rest: tuple[Tensor, ...], least: int = 1) -> bool:
    """Whether the op takes these maps. An exported graph gets the calls as they were written.

    The small map must have ``least`` rows and columns: padding by reflection needs two.
    """
    if exporting() or mask.ndim != 4 or mask.dtype not in checks.DTYPES or min(mask.shape[2:]) < least:
        return False
    doubled = _doubled(mask)
    if size is not None and (tuple(size) if isinstance(size, (tuple, list)) else (size, size)) != doubled:
        return False
    autocast = torch.is_autocast_enabled(mask.device.type)
    return all(
        x.ndim == 4
        and x.shape[0] == mask.shape[0]
        and tuple(x.shape[2:]) == doubled
        and x.device == mask.device
        and (x.dtype == mask.dtype or autocast)
        for x in rest
    )


def _convolves(conv: nn.Conv2d, mask: Tensor, rest: tuple[Tensor, ...]) -> bool:
    """Whether the convolution takes these maps. If not, PyTorch itself says why."""
    weight = conv.weight
    same = weight.device == mask.device and (weight.dtype == mask.dtype or torch.is_autocast_enabled(mask.device.type))
    return same and weight.shape[1] == mask.shape[1] + sum(x.shape[1] for x in rest)


def _doubled(mask: Tensor) -> tuple[int, int]:
    return 2 * mask.shape[2], 2 * mask.shape[3]


def _gated(mask: Tensor, gate: Tensor | None) -> Tensor | None:
    """The small map times the gate, or None if the gate differs between rows or columns."""
    if gate is None:
        return mask
    return mask * gate if not exporting() and gate.ndim == 4 and gate.shape[2:] == (1, 1) else None


def _pads(pad: tuple[Sequence[int], str] | None) -> bool:
    return pad is not None and any(pad[0])


def _drops(dropouts: Dropouts) -> bool:
    return any(layer.training and layer.p > 0 for layer in dropouts)


# The calls as they were written.


def _upsampled(mask: Tensor, size: Any, mode: str, align_corners: bool | None) -> Tensor:
    factor = 2 if size is None else None
    return F.interpolate(mask, size=size, scale_factor=factor, mode=mode, align_corners=align_corners)


def _dropped(x: Tensor, dropouts: Dropouts) -> Tensor:
    for layer in dropouts:
        x = layer(x)
    return x


def _padded(x: Tensor, width: int, mode: str) -> Tensor:
    return F.pad(x, (width,) * 4, "constant" if mode == "zeros" else mode)


def _finished(x: Tensor, norm: nn.BatchNorm2d | None, dropouts: Dropouts, activation: str) -> Tensor:
    x = _dropped(x if norm is None else norm(x), dropouts)
    return ACTIVATIONS[activation](x)

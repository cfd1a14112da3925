"""Modules over :mod:`sharpmask_kernels.functional`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from . import checks, functional, hooks, registry


class Refinement(nn.Module):
    """The refinement module R(F, M) of SharpMask (section 3.2), :func:`~sharpmask_kernels.functional.refine`.

    Equivalent to::

        class Plain(nn.Module):
            def __init__(self, feature_channels, mask_channels, out_channels, skip_channels):
                super().__init__()
                self.skip = nn.Conv2d(feature_channels, skip_channels, 3, padding=1)
                self.merge = nn.Conv2d(skip_channels + mask_channels, out_channels, 3, padding=1)

            def forward(self, feature, mask):
                skip = F.relu(self.skip(feature))
                merged = F.relu(self.merge(torch.cat([skip, mask], dim=1)))
                return F.interpolate(merged, scale_factor=2, mode="bilinear", align_corners=False)

    with the same parameter names and the same initial values for the same random seed. Forward takes feature
    (B, feature_channels, H, W) and mask (B, mask_channels, H, W) and gives (B, out_channels, 2H, 2W).

    ``upsample`` is "bilinear" or "nearest", ``padding_mode`` "zeros" or "replicate", ``backend`` one backend,
    strictly, or None for the best available. Bad arguments raise ``ValueError``.

    The op reads the convolutions' parameters, also parametrized ones, and does not call their forward. Where a call
    would do more (hooks, which ``torch.nn.utils.prune`` uses, also global ones, or another layer in a convolution's
    place), the plain forward runs instead, in PyTorch's own operations.
    """

    def __init__(
        self,
        feature_channels: int,
        mask_channels: int,
        out_channels: int,
        skip_channels: int,
        *,
        bias: bool = True,
        upsample: str = "bilinear",
        padding_mode: str = "zeros",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        sizes = {
            "feature_channels": feature_channels,
            "mask_channels": mask_channels,
            "out_channels": out_channels,
            "skip_channels": skip_channels,
        }
        for name, size in sizes.items():
            checks.integer(name, size, 1)
        checks.modes(upsample, padding_mode)
        if backend is not None:
            checks.choice("backend", backend, registry.BACKENDS)
        self.upsample = upsample
        self.backend = backend
        options: dict[str, Any] = {"padding": 1, "padding_mode": padding_mode, "bias": bias}
        self.skip = nn.Conv2d(feature_channels, skip_channels, 3, **options)
        self.merge = nn.Conv2d(skip_channels + mask_channels, out_channels, 3, **options)

    @property
    def padding_mode(self) -> str:
        """That of the merging convolution."""
        return str(getattr(self.merge, "padding_mode", None))

    def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
        skip, merge = self.skip, self.merge
        plain = _is_plain(skip) and _is_plain(merge) and skip.padding_mode == merge.padding_mode
        if hooks.anywhere() or not plain:
            merged = F.relu(merge(torch.cat([F.relu(skip(feature)), mask], dim=1)))
            return F.interpolate(merged, scale_factor=2, mode=self.upsample)
        return functional.refine(
            feature,
            mask,
            skip.weight,
            skip.bias,
            merge.weight,
            merge.bias,
            upsample=self.upsample,
            padding_mode=merge.padding_mode,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        return f"upsample={self.upsample}, padding_mode={self.padding_mode}, backend={self.backend or 'auto'}"


_OPTIONS = ((3, 3), (1, 1), (1, 1), (1, 1), 1)


def _is_plain(conv: Any) -> bool:
    """Whether a call of ``conv`` is the 3x3 convolution of its weight and bias, and nothing else."""
    if type(conv) is not nn.Conv2d and parametrize.type_before_parametrizations(conv) is not nn.Conv2d:
        return False
    options = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
    return options == _OPTIONS and not hooks.customized(conv)

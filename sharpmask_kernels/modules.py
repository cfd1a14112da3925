"""Modules over :mod:`sharpmask_kernels.functional`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from . import checks, functional, registry


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
    strictly, or None for the best available. The convolutions' parameters are read, their forward is not called:
    hooks on them do not run. Bad arguments raise ``ValueError``.
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
            checks.at_least(name, size, 1)
        checks.modes(upsample, padding_mode)
        if backend is not None:
            checks.choice("backend", backend, registry.BACKENDS)
        self.upsample = upsample
        self.padding_mode = padding_mode
        self.backend = backend
        options: dict[str, Any] = {"padding": 1, "padding_mode": padding_mode, "bias": bias}
        self.skip = nn.Conv2d(feature_channels, skip_channels, 3, **options)
        self.merge = nn.Conv2d(skip_channels + mask_channels, out_channels, 3, **options)

    def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
        return functional.refine(
            feature,
            mask,
            self.skip.weight,
            self.skip.bias,
            self.merge.weight,
            self.merge.bias,
            upsample=self.upsample,
            padding_mode=self.padding_mode,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        return f"upsample={self.upsample}, padding_mode={self.padding_mode}, backend={self.backend or 'auto'}"

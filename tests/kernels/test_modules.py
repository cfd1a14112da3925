"""Refinement is the plain module: its parameters, their first values, its results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharpmask_kernels.modules import Refinement

CHANNELS = (4, 3, 2, 5)  # feature, mask, out, skip


class Plain(nn.Module):
    def __init__(
        self, feature: int, mask: int, out: int, skip: int, bias: bool, upsample: str, padding_mode: Any
    ) -> None:
        super().__init__()
        self.upsample = upsample
        self.skip = nn.Conv2d(feature, skip, 3, padding=1, padding_mode=padding_mode, bias=bias)
        self.merge = nn.Conv2d(skip + mask, out, 3, padding=1, padding_mode=padding_mode, bias=bias)

    def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
        skip = F.relu(self.skip(feature))
        merged = F.relu(self.merge(torch.cat([skip, mask], dim=1)))
        return F.interpolate(merged, scale_factor=2, mode=self.upsample)


@pytest.mark.parametrize("padding_mode", ["zeros", "replicate"])
@pytest.mark.parametrize("upsample", ["bilinear", "nearest"])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_plain_module(bias: bool, upsample: str, padding_mode: str) -> None:
    torch.manual_seed(0)
    plain = Plain(*CHANNELS, bias, upsample, padding_mode).double()
    torch.manual_seed(0)
    ours = Refinement(*CHANNELS, bias=bias, upsample=upsample, padding_mode=padding_mode).double()
    assert list(ours.state_dict()) == list(plain.state_dict())
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)

    maps = [torch.randn(2, c, 5, 4, dtype=torch.float64, requires_grad=True) for c in CHANNELS[:2]]
    expected, found = plain(*maps), ours(*maps)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    wanted = torch.autograd.grad(expected.sin().sum(), [*maps, *plain.parameters()])
    gradients = torch.autograd.grad(found.sin().sum(), [*maps, *ours.parameters()])
    torch.testing.assert_close(gradients, wanted, rtol=1e-12, atol=1e-12)


def test_its_text_names_the_options() -> None:
    assert "upsample=bilinear, padding_mode=zeros, backend=auto" in repr(Refinement(*CHANNELS))
    text = repr(Refinement(*CHANNELS, upsample="nearest", padding_mode="replicate", backend="reference"))
    assert "upsample=nearest, padding_mode=replicate, backend=reference" in text


@pytest.mark.parametrize("name", ["feature_channels", "mask_channels", "out_channels", "skip_channels"])
def test_refuses_no_channels(name: str) -> None:
    names = ("feature_channels", "mask_channels", "out_channels", "skip_channels")
    with pytest.raises(ValueError, match=f"^{name} must be at least 1, got 0$"):
        Refinement(**{**dict.fromkeys(names, 2), name: 0})


@pytest.mark.parametrize("option", ["upsample", "padding_mode", "backend"])
def test_refuses_unknown_options(option: str) -> None:
    options: dict[str, Any] = {option: "other"}
    with pytest.raises(ValueError, match=f"^{option} must be one of .*, got 'other'$"):
        Refinement(*CHANNELS, **options)


def test_it_compiles_as_one_graph() -> None:
    module = Refinement(*CHANNELS)
    maps = [torch.randn(2, c, 5, 4) for c in CHANNELS[:2]]
    torch.testing.assert_close(torch.compile(module, fullgraph=True, backend="aot_eager")(*maps), module(*maps))

"""fuse with example inputs: what does not gain is swapped back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharpmask_kernels import fuse
from sharpmask_kernels.fuse import measured
from sharpmask_kernels.fuse.swapped import Swapped


class Level(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.merge = nn.Conv2d(2 * channels, out, 3, padding=1)

    def forward(self, skip: Tensor, mask: Tensor) -> Tensor:
        return F.interpolate(F.relu(self.merge(torch.cat([skip, mask], 1))), scale_factor=2)


class Decoder(nn.Module):
    """Two levels and one that no example reaches; a mean that moves; random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.coarse, self.fine, self.unused = Level(8, 4), Level(4, 2), Level(4, 2)
        self.norm, self.dropout = nn.BatchNorm2d(8), nn.Dropout()

    def forward(self, deep: Tensor, shallow: Tensor, mask: Tensor) -> Tensor:
        return self.fine(shallow, self.coarse(self.dropout(self.norm(deep)), mask))


EXAMPLE = (torch.rand(1, 8, 5, 6), torch.rand(1, 4, 10, 12), torch.rand(1, 8, 5, 6))


def swapped_with(monkeypatch: pytest.MonkeyPatch, ratios: dict[int, float], model: Decoder) -> Any:
    """What fuse reports where levels of so many outputs have these ratios."""
    monkeypatch.setattr(measured, "speedup", lambda module, *_: ratios[module.merge.out_channels])
    return fuse(model, EXAMPLE)


def test_only_what_gains_stays_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Decoder().eval()
    expected = model(*EXAMPLE)
    report = swapped_with(monkeypatch, {4: 0.87, 2: 1.4}, model)
    assert report.swapped == ("fine", "unused") and int(report) == 2
    assert "0.87" in report.left["coarse"]
    assert type(model.coarse) is Level and isinstance(model.fine, Swapped)
    assert "_is_swapped" not in vars(model.coarse)
    torch.testing.assert_close(model(*EXAMPLE), expected)
    assert fuse(model).swapped == ("coarse",)  # it can be swapped again


def test_nothing_else_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Decoder().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(5)
    torch.manual_seed(3)
    fuse(model, EXAMPLE)
    assert torch.equal(torch.rand(5), expected)
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(x.grad is None for x in model.parameters())
    assert not any(x.requires_grad for x in EXAMPLE)


@pytest.mark.parametrize("training", [False, True])
def test_a_module_is_timed_as_it_was_and_as_it_is(training: bool) -> None:
    model = Decoder().train(training)
    fuse(model)
    fused = type(model.fine)
    assert measured.speedup(model.fine, (torch.rand(1, 4, 8, 8), torch.rand(1, 4, 8, 8)), {}) > 0
    assert type(model.fine) is fused

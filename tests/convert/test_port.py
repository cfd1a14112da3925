"""The PyTorch port of DeepMask, as a network of the tests' own, converted; and other PyTorch files, refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from sharpmask.checkpoint import load_model, save_model
from sharpmask.convert import convert
from sharpmask.errors import DataError

PATCH = np.random.default_rng(1).uniform(size=(3, 80, 80))


class Port(nn.Module):
    """The port's network and names: padding modules before convolutions, heads as 1x1 convolutions."""

    def __init__(self, cells: int = 3, side: int = 12) -> None:
        super().__init__()
        net = torchvision.models.resnet50(weights=None)
        for block in [b for stage in (net.layer1, net.layer2, net.layer3) for b in stage]:
            block.conv2.padding = (0, 0)
            block.conv2 = nn.Sequential(nn.ReflectionPad2d(1), block.conv2)
        net.conv1.padding = (0, 0)
        first = nn.Sequential(Symmetric(), net.conv1)
        features = [first, net.bn1, net.relu, net.maxpool, net.layer1, net.layer2, net.layer3]
        code = nn.Sequential(nn.Conv2d(1024, 8, 1), nn.ReLU(), nn.Conv2d(8, 16, cells))
        self.trunk = nn.Sequential(nn.Sequential(*features), code)
        self.maskBranch = nn.Sequential(nn.Sequential(nn.Conv2d(16, side**2, 1)), nn.Identity())
        self.scoreBranch = nn.Sequential(
            *(nn.Dropout(), nn.Conv2d(16, 16, 1), nn.Threshold(0, 1e-6), nn.Dropout(), nn.Conv2d(16, 1, 1))
        )


class Symmetric(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tensor(np.pad(x.numpy(), ((0, 0), (0, 0), (3, 3), (3, 3)), mode="symmetric"))


@pytest.fixture(scope="module")
def port() -> Port:
    torch.manual_seed(0)
    model = Port().eval()
    for norm in [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]:
        nn.init.uniform_(norm.running_mean, -0.1, 0.1)
        nn.init.uniform_(norm.running_var, 0.8, 1.2)
    return model


@pytest.mark.parametrize("trained", [False, True])
def test_the_port(port: Port, trained: bool, tmp_path: Path) -> None:
    state: dict[str, Any] = dict(port.state_dict())
    if trained:
        state = {"epoch": 3, "best_acc": 0.5, "state_dict": {f"module.{k}": v for k, v in state.items()}}
    torch.save(state, tmp_path / "model.pth.tar")
    found = convert(tmp_path / "model.pth.tar")
    assert found.unused == [] and found.model.config.trunk_padding == "reflect"
    save_model(found.model, tmp_path / "out.safetensors")
    model = load_model(tmp_path / "out.safetensors")
    image = torch.tensor(PATCH, dtype=torch.float32)[None]
    with torch.inference_mode():
        x = (image - model.mean) / model.std
        code = port.trunk[1](port.trunk[0](x)[:, :, 1:-1, 1:-1])
        coarse, score = model(image)
        torch.testing.assert_close(score[0], port.scoreBranch(code)[0, 0, 0, 0], rtol=0, atol=1e-4)
        torch.testing.assert_close(coarse[0], port.maskBranch(code).view(12, 12), rtol=0, atol=1e-4)


class Code:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"a": torch.zeros(1)}, "expected a state_dict of the PyTorch port of DeepMask"),
        ([1], "expected tensors by name, got list"),
        ({"state_dict": {"a": 1}}, "expected tensors by name"),
        ({"a": torch.zeros(1).expand(10**12)}, "the tensors are larger than the file"),
        pytest.param(Code(), "got a pickled object of .*, which is not read because it could run code", id="code"),
    ],
    ids=str,
)
def test_other_checkpoints(saved: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(saved, "model.pth")
    with pytest.raises(DataError, match=message) as raised:
        convert("model.pth")
    assert len(str(raised.value).splitlines()) == 1 and not Path("ran").exists()


def test_the_port_with_another_shape(port: Port, tmp_path: Path) -> None:
    state = dict(port.state_dict())
    torch.save(state | {"scoreBranch.4.weight": torch.zeros(1, 17, 1, 1)}, tmp_path / "a.pth")
    with pytest.raises(DataError, match=r"score.4.weight must be \(1, 16\), got \(1, 17, 1, 1\)"):
        convert(tmp_path / "a.pth")
    torch.save(state | {"more": torch.zeros(1)}, tmp_path / "b.pth")
    assert convert(tmp_path / "b.pth").unused == ["more"]

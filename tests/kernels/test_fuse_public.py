"""fuse on models by others: segmentation_models_pytorch, MONAI, torchvision. The weights are random."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import monai.networks.nets as monai_nets
import pytest
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from sharpmask_kernels.fuse import fuse
from tests.kernels.fusing import assert_near, ops_of, results

MERGE, ADD = "upsample_merge", "upsample_add"


def of_smp(name: str, encoder: str = "resnet18", **options: Any) -> Callable[[], nn.Module]:
    if name in ("Unet", "UnetPlusPlus", "MAnet"):
        options["decoder_channels"] = (32, 16, 16, 16, 16)
    return lambda: getattr(smp, name)(encoder, encoder_weights=None, **options)


def basic_unet(name: str = "BasicUNet", **options: Any) -> Callable[[], nn.Module]:
    widths = (4, 4, 8, 8, 16, 4)
    return lambda: getattr(monai_nets, name)(2, 3, 2, widths, upsample="nontrainable", **options)


def flexible_unet() -> nn.Module:
    return monai_nets.FlexibleUNet(3, 2, "efficientnet-b0", decoder_channels=(16, 16, 8, 8, 4))


MODELS: dict[str, tuple[Callable[[], nn.Module], int, list[str]]] = {
    "smp Unet": (of_smp("Unet"), 5, [MERGE] * 5),
    "smp Unet, EfficientNet": (of_smp("Unet", "efficientnet-b0"), 5, [MERGE] * 5),
    "smp Unet, bilinear, no norm": (
        of_smp("Unet", decoder_interpolation="bilinear", decoder_use_norm=False),
        5,
        [MERGE] * 5,
    ),
    "smp Unet, attention": (of_smp("Unet", decoder_attention_type="scse"), 1, [MERGE]),
    "smp UnetPlusPlus": (of_smp("UnetPlusPlus"), 11, [MERGE] * 11),
    "smp MAnet": (of_smp("MAnet"), 5, [MERGE] * 5),
    "smp Linknet": (of_smp("Linknet"), 0, []),
    "smp FPN": (of_smp("FPN"), 7, [MERGE] * 3 + [ADD] * 4),
    "smp PAN": (of_smp("PAN"), 5, [ADD] * 4),
    "smp UPerNet": (of_smp("UPerNet"), 3, [ADD] * 3),
    "MONAI BasicUNet": (basic_unet(), 4, [MERGE] * 4),
    "MONAI BasicUNet, BatchNorm": (basic_unet(norm="batch", act="relu"), 4, [MERGE] * 4),
    "MONAI FlexibleUNet": (flexible_unet, 5, [MERGE] * 5),
    "MONAI BasicUNetPlusPlus": (basic_unet("BasicUNetPlusPlus"), 10, [MERGE] * 10),
    "MONAI SegResNet": (lambda: monai_nets.SegResNet(2, 8, 3, 2), 3, [ADD] * 3),
    "MONAI UNet": (lambda: monai_nets.UNet(2, 3, 2, (4, 8, 8), (2, 2)), 0, []),
}

REASONS = {
    "smp Unet, attention": "an attention weighs the result of the concatenation",
    "smp Linknet": "ConvTranspose2d learns its own upsampling",
    "smp UPerNet": "maps of several sizes are upsampled and concatenated",
    "MONAI UNet": "ConvTranspose2d learns its own upsampling",
}
"""What a report says of the steps that are left."""


def image(kind: str, dtype: torch.dtype = torch.float64) -> Tensor:
    torch.manual_seed(2)
    side = 128 if kind == "smp PAN" else 64  # PAN pools its deepest map three times more
    pools = kind in ("smp PAN", "smp UPerNet")  # and normalises single cells, by the batch
    return torch.randn(1 + pools, 3, side, side, dtype=dtype)


def models(kind: str) -> tuple[nn.Module, nn.Module, Any]:
    """The model, fused, as it was, and the report."""
    torch.manual_seed(1)
    plain = MODELS[kind][0]().double().eval()
    model = copy.deepcopy(plain)
    return model, plain, fuse(model)


@pytest.mark.parametrize("kind", MODELS)
def test_a_public_model_gives_the_same_results(kind: str) -> None:
    model, plain, report = models(kind)
    _, swapped, ops = MODELS[kind]
    assert int(report) == swapped, report
    assert not any("roxy" in reason for reason in report.left.values())
    assert kind not in REASONS or any(REASONS[kind] in reason for reason in report.left.values()), report
    assert sorted(ops_of(model, image(kind))) == sorted(ops), report
    for training in (False, True):
        assert_near(results(model.train(training), image(kind)), results(plain.train(training), image(kind)), 1e-6)


@pytest.mark.parametrize("largest", [16, 15])
def test_torchvisions_pyramid_gives_the_same_results(largest: int) -> None:
    torch.manual_seed(1)
    plain = FeaturePyramidNetwork([4, 5, 6], 3, LastLevelMaxPool()).double()
    model = copy.deepcopy(plain)
    assert int(fuse(model)) == 1
    sides = (largest, 8, 4)
    maps = OrderedDict((f"p{side}", torch.randn(1, 4 + i, side, side).double()) for i, side in enumerate(sides))
    assert ops_of(model, maps) == [ADD] * (2 if largest == 16 else 1)
    assert list(model(maps)) == list(plain(maps))
    assert_near(results(model, maps), results(plain, maps), 1e-9)

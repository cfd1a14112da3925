"""Models by name: every option arrives, what is unusable is refused, weights come from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sharpmask.errors import DataError
from sharpmask.models import ModelConfig, SearchConfig, SharpMask, build_model

SMALL: dict[str, Any] = {"trunk": "efficientnet_lite0", "features": 8, "code": 16, "mask_side": 12, "score_hidden": 10}


def test_build_model_passes_everything_on() -> None:
    with torch.device("meta"):
        model = build_model(
            "sharpmask", window=112, context=64, mask_channels=(8, 7, 6, 5, 4), skip_channels=(3, 2, 3, 2),
            skip_hidden=9, crop_first=True, **SMALL,
        )  # fmt: skip
    assert isinstance(model, SharpMask)
    assert (model.window, model.context, model.cells, model.crop_first) == (112, 64, 7, True)
    assert model.encoding.out_features == 8 * 49
    first = model.refinements[0]
    assert [(c.in_channels, c.out_channels) for c in first.skip] == [(112, 9), (9, 3)]
    assert (first.merge.in_channels, first.merge.out_channels) == (3 + 8, 7)
    assert model.head.in_channels == 4
    assert model.config == ModelConfig(
        "sharpmask", window=112, context=64, mask_channels=(8, 7, 6, 5, 4), skip_channels=(3, 2, 3, 2), skip_hidden=9,
        crop_first=True, **SMALL,
    )  # fmt: skip
    assert model.search == SearchConfig.for_window(112)


def test_defaults() -> None:
    with torch.device("meta"):
        model, original = build_model("sharpmask"), build_model("deepmask-original")
    assert (model.config.trunk, model.window, model.context, model.crop_first) == ("resnet50", 160, 32, False)
    assert (original.config.trunk, original.window, original.context) == ("vgg11", 224, 0)


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        ("maskrcnn", {}, "architecture must be one of 'deepmask', 'sharpmask', 'deepmask-original', got 'maskrcnn'"),
        ("sharpmask", {"trunk": "alexnet"}, "trunk must be one of .*got 'alexnet'"),
        ("sharpmask", {"refinement": "new"}, "refinement must be one of 'paper', 'released', got 'new'"),
        ("deepmask", {"window": 100}, "window must be a multiple of 16 from 16 to 1024, got 100"),
        ("deepmask", {"window": 0}, "window must be a multiple of 16 from 16 to 1024, got 0"),
        ("deepmask", {"context": 16}, "context must be a multiple of 32 from 0 to 1024, got 16"),
        ("deepmask", {"context": -32}, "context must be a multiple of 32 from 0 to 1024, got -32"),
        ("deepmask", {"features": 0}, "features must be a whole number from 1 to 16384, got 0"),
        ("deepmask", {"code": 10**30}, "code must be a whole number from 1 to 16384, got 10{30}"),
        ("sharpmask", {"mask_channels": (8, 4, 2)}, "must have 5 and 4 entries, got 3 and 4"),
        ("sharpmask", {"skip_channels": (8, 4, 0, 2)}, "skip_channels must be a whole number from 1 to 16384, got 0"),
    ],
)
def test_refusals(architecture: Any, options: dict[str, Any], message: str) -> None:
    options = SMALL | options
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build_model(architecture, **options)


def test_all_weights_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "all.safetensors"
    model = build_model("deepmask", window=32, **SMALL)
    state = model.state_dict()
    save_file(state, path)
    again = build_model("deepmask", window=32, weights=path, **SMALL)
    assert all(torch.equal(v, state[k]) for k, v in again.state_dict().items())
    for changed, message in (
        ({k: v for k, v in state.items() if k != "mask.bias"}, "tensor mask.bias is missing"),
        (state | {"more": torch.zeros(1)}, "tensor more is not part of the model"),
        (state | {"mask.bias": torch.zeros(3)}, r"mask.bias must be \(144,\), got \(3,\)"),
    ):
        save_file(changed, path)
        with pytest.raises(DataError, match=rf"all\.safetensors: {message}"):
            build_model("deepmask", window=32, weights=path, **SMALL)

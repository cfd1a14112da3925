"""Search settings: ranges and the paper's scales."""

from __future__ import annotations

from typing import Any

import pytest

from sharpmask.errors import DataError
from sharpmask.models import ModelConfig, SearchConfig, from_config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": ()}, "scales"),
        ({"scales": (0.5, 0.0)}, "scales"),
        ({"scales": (float("nan"),)}, "scales"),
        ({"scales": (17.0,)}, "scales"),
        ({"threshold": 0.0}, "threshold must be a number strictly between 0 and 1, got 0.0"),
        ({"mask_nms": 1.0}, "mask_nms"),
        ({"box_nms": float("nan")}, "box_nms"),
    ],
)
def test_search_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        SearchConfig(**options)


def test_the_papers_scales() -> None:
    assert SearchConfig().scales == tuple(2**e for e in (-2.5, -2, -1.5, -1, -0.5, 0, 0.5))


def test_other_windows_look_for_objects_of_the_same_sizes() -> None:
    paper = SearchConfig().scales
    assert paper == tuple(2 ** (e / 2) for e in range(-5, 2))
    for window in (80, 112, 160):
        config = ModelConfig("deepmask", "efficientnet_lite0", window=window, features=8, code=8, mask_side=8)
        canonical = [window * 128 / 224 / scale for scale in from_config(config).search.scales]
        assert canonical == pytest.approx([160 * 128 / 224 / scale for scale in paper])


@pytest.mark.parametrize(
    ("settings", "culprit"),
    [
        ({"mask_side": 1024}, "code and mask_side"),
        ({"window": 1024, "features": 16384}, "window, features and code"),
        ({"code": 16384, "score_hidden": 16384, "mask_side": 1}, "code and score_hidden"),
        ({"mask_channels": (8192, 4096, 8, 4, 2)}, "mask_channels, skip_channels and skip_hidden"),
        ({"architecture": "deepmask-original", "trunk": "vgg11", "window": 1024}, "window, features and code"),
    ],
)
def test_a_model_that_would_take_all_memory(settings: dict[str, Any], culprit: str) -> None:
    with pytest.raises(DataError, match=rf"a model must have at most 268435456 weights .* of them by {culprit}"):
        ModelConfig(**settings)

"""Devices by name."""

from __future__ import annotations

import pytest
import torch

from sharpmask.devices import usable_device
from sharpmask.errors import DataError


@pytest.mark.parametrize("name", ["meta", "abacus", "", "cpu:x", "vulkan", "cuda:99", "hpu", "cpu cuda", "mkldnn"])
def test_a_device_that_cannot_compute_is_told(name: str) -> None:
    with pytest.raises(DataError, match=f"device {name!r} cannot be used: ") as error:
        usable_device(name)
    assert "\n" not in str(error.value)


def test_auto_takes_a_gpu_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable_device("auto") == torch.device("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert usable_device("auto") == torch.device("cpu")


def test_a_device_that_computes() -> None:
    assert usable_device("cpu") == torch.device("cpu")

"""The guard against code that waits for a GPU can fail."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from .waiting import no_waiting

WAITS: dict[str, Callable[[Tensor], Any]] = {
    "mask": lambda x: x[x > 0.5],
    "truth": lambda x: bool(x.sum() > 1),
    "nonzero": lambda x: x.nonzero(),
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x[0]),
    "list": lambda x: x.tolist(),
    "copy": lambda x: x.cpu(),
    "numpy": lambda x: x.numpy(),
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_what_waits_is_refused(wait: Callable[[Tensor], Any]) -> None:
    x = torch.rand(4)
    with pytest.raises(AssertionError, match="waits for the device"), no_waiting():
        wait(x)

"""Poisoned memory, planted faults, and what the table of results (table.py) is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from . import faults, table
from .subjects import Subject, missing


@pytest.fixture(scope="session", autouse=True)
def fault(request: pytest.FixtureRequest) -> Any:
    name = request.config.getoption("--fault")
    with pytest.MonkeyPatch.context() as patch:
        if name:
            plant, _ = faults.FAULTS[name]
            plant(patch)
        yield


@pytest.fixture(scope="session", autouse=True)
def exact_convolutions() -> None:
    """PyTorch's own, on a GPU: fp32 in full, and the same bits again. The reference is made of them."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = True


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """New memory is full of NaN (of 0x55 for integers): a kernel that leaves cells unwritten shows."""

    def fill(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def made(*args: Any, **kwargs: Any) -> torch.Tensor:
            x = make(*args, **kwargs)
            return x.fill_(float("nan") if x.is_floating_point() else 0x55)

        return made

    monkeypatch.setattr(torch, "empty", fill(torch.empty))
    monkeypatch.setattr(torch, "empty_like", fill(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", fill(torch.Tensor.new_empty))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        subject = getattr(item, "callspec", None) and item.callspec.params.get("subject")  # type: ignore[attr-defined]
        if isinstance(subject, Subject):
            item.user_properties.append((table.PROPERTY, [*subject, missing(subject.backend)]))

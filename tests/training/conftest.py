"""What tests of training share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Bits are compared, so all runs have one thread; other tests get their threads back."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)

"""Engine compile, which is for GPUs, runs here on the CPU: one graph for pictures of all sizes, the same proposals."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from sharpmask.errors import DataError
from sharpmask.models import SharpMask
from sharpmask.search import ProposalGenerator
from sharpmask.search.engines import compiled
from sharpmask.search.maps import Stopwatch


def random_image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@torch.inference_mode()
def logits(generator: ProposalGenerator, image: np.ndarray) -> tuple[list[list[int]], torch.Tensor]:
    watch = Stopwatch(torch.device("cpu"))
    maps = generator.look(image, watch, generator._best)
    windows = generator._best(maps)
    places = torch.stack([windows.scale, windows.row, windows.col]).tolist()
    return places, generator.window_logits(maps, windows, watch)


def test_proposals_are_those_of_pytorch(tiny_sharpmask: SharpMask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "check", lambda model: None)
    model = copy.deepcopy(tiny_sharpmask)
    plain = ProposalGenerator(model, top_n=20)
    fast = ProposalGenerator(model, top_n=20, engine="compile")
    assert fast.form is fast.form
    logits(fast, random_image(75, 131))
    with torch.compiler.set_stance("fail_on_recompile"):
        for size in [(96, 128), (60, 77)]:
            (expected, theirs), (found, ours) = (logits(g, random_image(*size)) for g in (plain, fast))
            assert found == expected
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    before = fast.form
    with torch.no_grad():
        next(model.trunk.parameters()).mul_(2)
    assert fast.form is not before


def test_a_cpu_is_refused(tiny_sharpmask: SharpMask) -> None:
    with pytest.raises(DataError, match="device must be cuda for engine compile, got cpu; on CPUs engine torch"):
        ProposalGenerator(tiny_sharpmask, engine="compile")


@pytest.mark.gpu
def test_proposals_on_a_gpu(tiny_sharpmask: SharpMask) -> None:
    model = copy.deepcopy(tiny_sharpmask).to("cuda")
    plain, fast = (ProposalGenerator(model, top_n=20, engine=engine) for engine in ("torch", "compile"))
    for size in [(75, 131), (96, 128)]:
        (expected, theirs), (found, ours) = (logits(g, random_image(*size)) for g in (plain, fast))
        assert found == expected
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)

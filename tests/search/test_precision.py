"""Lower precisions of PyTorch, and searches that let a GPU work on. The searches run on the CPU, by the same code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from sharpmask.checkpoint import load_model
from sharpmask.errors import DataError
from sharpmask.models import DeepMask, build_model
from sharpmask.search import ProposalGenerator
from sharpmask.search.engines import CAST
from sharpmask.search.maps import Stopwatch
from tests.waiting import no_waiting, strictly


@pytest.fixture(scope="module")
def model() -> DeepMask:
    return load_model()


@pytest.fixture
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)


def generator_of(model: DeepMask, precision: str) -> ProposalGenerator:
    """One that computes in a precision which only GPUs gain from, here on the CPU."""
    generator = ProposalGenerator(model, 20)
    generator.precision = precision  # type: ignore[assignment]
    return generator


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_precisions_that_gain_nothing_are_refused(model: DeepMask, precision: Any) -> None:
    with pytest.raises(DataError, match=f"precision must be fp32 with engine torch on cpu, got {precision}"):
        ProposalGenerator(model, precision=precision)


@torch.inference_mode()
def test_logits_under_autocast_are_close(model: DeepMask, photo: np.ndarray) -> None:
    watch = Stopwatch(torch.device("cpu"))
    plain, cast = (generator_of(model, precision) for precision in ("fp32", "bf16"))
    maps, rough = plain.look(photo, watch), cast.look(photo, watch)
    assert rough.codes[0].dtype == rough.horizontals[0][0].dtype == CAST["bf16"]
    windows = plain._best(maps)
    a, b = plain.window_logits(maps, windows, watch), cast.window_logits(rough, windows, watch).float()
    assert (a - b).abs().mean() < 0.05 * a.abs().mean()
    assert not torch.equal(a, b)
    for exact, score in zip(maps.score, rough.score, strict=True):
        assert_close(score.float(), exact, rtol=0.1, atol=0.1)
    assert len(cast.generate(photo)) > 0


class Guarded(Stopwatch):
    """Enters ``guard`` at the first stage and leaves it before masks are encoded."""

    def __init__(self, device: torch.device, guard: Any) -> None:
        super().__init__(device)
        self.guard, self.stages = guard, list[str]()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        if not self.stages:
            self.guard.__enter__()
        if stage == "encode":
            self.guard.__exit__(None, None, None)
        self.stages.append(stage)
        with super().__call__(stage):
            yield


@torch.inference_mode()
def search(generator: ProposalGenerator, photo: np.ndarray, guard: Any) -> list[str]:
    watch = Guarded(generator.device, guard)
    maps = generator.look(photo, watch, generator._best)
    with watch("top-N"):
        windows = generator._best(maps)
    generator.segment(maps, windows, watch)
    return watch.stages


@pytest.mark.parametrize("refine", [True, False])
def test_nothing_waits_for_the_device_before_masks_are_encoded(
    model: DeepMask, photo: np.ndarray, refine: bool
) -> None:
    generator = generator_of(model, "bf16")
    generator.refine = refine
    stages = search(generator, photo, no_waiting())
    assert stages[0] == "resize" and stages[-1] == "encode" and ("refine" in stages) == refine


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", ["shipped", "resnet50"])
def test_nothing_waits_on_a_gpu(name: str, precision: Any, photo: np.ndarray) -> None:
    model = (load_model() if name == "shipped" else build_model("sharpmask", trunk="resnet50")).to("cuda")
    generator = ProposalGenerator(model, 20, precision=precision)

    generator.generate(photo)  # Kernels are loaded and tuned at their first use.
    search(generator, photo, strictly())
    assert all(seconds >= 0 for seconds in generator.generate(photo).timing.values())

"""What is particular to the Triton kernels: tiles of all sizes, addresses, and a whole model's gradients.

They run in Triton's interpreter here, which looks at each address (:mod:`tests.interpreter`).
"""

from __future__ import annotations

import functools
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import sharpmask_kernels as kernels
from sharpmask_kernels import Windows
from sharpmask_kernels.backends.triton import convolutions, decoder, device, gather_windows, tuning
from sharpmask_kernels.backends.triton.gather_windows import GatherTile
from sharpmask_kernels.backends.triton.launch import as_map
from tests import interpreter

INTERPRETED = device.INTERPRETED and device.unavailable() is None

needs_interpreter = pytest.mark.skipif(not INTERPRETED, reason="TRITON_INTERPRET=1 is not set, or there is no triton")
CHANNELS_LAST = torch.channels_last
DECODER_MODES = [
    ("nearest", "zeros", 16),
    ("nearest", "replicate", 128),
    ("bilinear", "replicate", 16),
    ("bilinear_corners", "zeros", 128),
]
MODES = list(itertools.product(("bilinear", "nearest"), ("zeros", "replicate")))


@pytest.fixture
def seen() -> Callable[[], int]:
    """How many addresses kernels have used since."""
    before = interpreter.addresses_seen
    return lambda: interpreter.addresses_seen - before


def random(*shape: int) -> Tensor:
    """Positive and small: no activation near 0, where rounding decides what ReLU lets through."""
    return torch.rand(*shape) / 4 + 0.01


def outcome(name: str, inputs: list[Tensor], options: dict[str, Any]) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = getattr(kernels, name)(*leaves, **options)
    weight = torch.linspace(-1, 1, out.numel()).view(out.shape)
    return [out.detach(), *torch.autograd.grad(out, leaves, weight)]


def assert_agrees(name: str, inputs: list[Tensor], **options: Any) -> None:
    found = outcome(name, inputs, {**options, "backend": "triton"})
    expected = outcome(name, inputs, {**options, "backend": "reference"})
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5 * float(y.abs().max()))


def tile(monkeypatch: pytest.MonkeyPatch, pixels: int) -> None:
    def chosen(kernel: str, *shape: Any) -> dict[str, int]:
        # Of upsample.forward at least three rows of 17 activations: two of corners.
        return {"PIXELS": max(pixels, 64) if kernel == "upsample.forward" else pixels}

    monkeypatch.setattr(tuning, "chosen", chosen)
    monkeypatch.setattr(convolutions, "WEIGHT_PIXELS", pixels)


@needs_interpreter
@pytest.mark.parametrize("pixels", [16, 128])
@pytest.mark.parametrize(("upsample", "padding_mode"), MODES)
def test_tiles_of_refinement(
    pixels: int, upsample: str, padding_mode: str, monkeypatch: pytest.MonkeyPatch, seen: Callable[[], int]
) -> None:
    """Maps that are cut in rows and columns, or smaller than a tile."""
    tile(monkeypatch, pixels)
    weights = [random(3, 5, 3, 3), random(3), random(2, 7, 3, 3), random(2)]
    maps = [random(2, c, 5, 19).contiguous(memory_format=CHANNELS_LAST) for c in (5, 4)]
    assert_agrees("refine", [*maps, *weights], upsample=upsample, padding_mode=padding_mode)
    assert seen() > 10_000


@needs_interpreter
@pytest.mark.parametrize("enough", [1, 99], ids=["all phases in a program", "a program for each phase"])
@pytest.mark.parametrize(("upsample", "padding_mode", "pixels"), [*DECODER_MODES])
def test_tiles_of_decoders(
    enough: int,
    upsample: str,
    padding_mode: str,
    pixels: int,
    monkeypatch: pytest.MonkeyPatch,
    seen: Callable[[], int],
) -> None:
    """Maps that are cut, or smaller than a tile; more outputs than one block holds, more channels than one step."""
    tile(monkeypatch, pixels)
    monkeypatch.setattr(decoder, "ENOUGH", enough)
    maps = [random(1, 37, 3, 7), random(1, 5, 6, 14)]
    maps = [x.contiguous(memory_format=CHANNELS_LAST) for x in maps]
    options = {"upsample": upsample, "padding_mode": padding_mode, "mask_first": pixels == 16}
    assert_agrees("upsample_merge", [*maps, random(35, 42, 3, 3), random(35)], **options)
    assert_agrees("upsample_add", [random(2, 3, 5, 6), random(2, 3, 10, 12)], upsample=upsample, activation="relu")
    assert seen() > 10_000


@needs_interpreter
@pytest.mark.parametrize("shape", [GatherTile(4, 4), GatherTile(64, 4), GatherTile(4096, 64)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, CHANNELS_LAST])
def test_tiles_of_gathering(
    shape: GatherTile,
    memory_format: torch.memory_format,
    monkeypatch: pytest.MonkeyPatch,
    seen: Callable[[], int],
) -> None:
    monkeypatch.setattr(gather_windows, "GATHER_TILE", shape)
    cells = torch.tensor([(0, 0, 0), (1, -2, 3), (1, 1, 1), (0, 4, -1), (1, 1, 2)]).T
    windows = Windows(torch.zeros(5), cells[0].contiguous(), torch.zeros(5, dtype=torch.int64), *cells[1:])
    maps = random(2, 3, 5, 6).contiguous(memory_format=memory_format)
    found = outcome("gather_windows", [maps], {"windows": windows, "size": 4, "backend": "triton"})
    expected = outcome("gather_windows", [maps], {"windows": windows, "size": 4, "backend": "reference"})
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y)
    assert seen() > 500


@needs_interpreter
def test_wide_maps_are_cut_in_channels_too() -> None:
    """More outputs than one block holds, and more inputs than one step of the contraction."""
    maps = [random(1, c, 3, 4).contiguous(memory_format=CHANNELS_LAST) for c in (37, 33)]
    assert_agrees("merge_upsample", [*maps, random(35, 70, 3, 3), random(35)])


@needs_interpreter
def test_an_address_out_of_bounds_is_caught() -> None:
    """Planted: a kernel that is told of one more row than there is."""
    from triton.runtime.interpreter import InterpreterError

    from sharpmask_kernels.backends.triton.kernels import gather_windows

    maps, out = as_map(torch.zeros(1, 1, 2, 2)), as_map(torch.empty(1, 1, 4, 4))
    zero = torch.zeros(1, dtype=torch.int64)
    for height, fits in ((2, True), (3, False)):
        arguments = (maps, out, zero, zero, zero, zero, 0, 1, 1, height, 2, 4, 9, 1)
        call = functools.partial(gather_windows.forward[(1,)], *arguments, C=1)
        if fits:
            call(CHANNELS_LAST=False, CELLS=16, CHANNELS=1)
        else:
            with pytest.raises(InterpreterError, match="out of bounds"):
                call(CHANNELS_LAST=False, CELLS=16, CHANNELS=1)


@needs_interpreter
def test_a_whole_refinement_has_the_gradients_of_the_reference() -> None:
    """Four levels of SharpMask, the output of each the mask of the next."""
    channels = ((9, 6, 6), (8, 4, 4), (7, 3, 3), (5, 2, 2))  # feature, skip, mask
    torch.manual_seed(0)
    features, weights = [], []
    for level, (feature, skip, mask) in enumerate(channels):
        out = channels[level + 1][2] if level + 1 < len(channels) else 1
        features.append(torch.randn(1, feature, 2 << level, 2 << level).contiguous(memory_format=CHANNELS_LAST))
        weights += [torch.randn(skip, feature, 3, 3) / 9, torch.randn(skip) / 9]
        weights += [torch.randn(out, skip + mask, 3, 3) / 5, torch.rand(out) / 9]
    code = torch.randn(1, 6, 2, 2).contiguous(memory_format=CHANNELS_LAST)

    def gradients(name: str) -> tuple[Tensor, ...]:
        leaves = [x.detach().requires_grad_() for x in (code, *features, *weights)]
        mask = leaves[0]
        for level in range(4):
            parameters = leaves[5 + 4 * level : 9 + 4 * level]
            mask = kernels.refine(leaves[1 + level], mask, *parameters, padding_mode="replicate", backend=name)
        assert mask.shape == (1, 1, 32, 32)
        return torch.autograd.grad(mask.square().mean(), leaves)

    for found, expected in zip(gradients("triton"), gradients("reference"), strict=True):
        assert expected.abs().max() > 0
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def run(code: str, **environment: str) -> str:
    kept = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "SHARPMASK_BACKEND")}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**kept, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_without_triton_it_says_so() -> None:
    told = run(
        """
import sys
sys.modules["triton"] = None  # importing it now raises
import torch, sharpmask_kernels as kernels
print(kernels.available_backends()["triton"])
try:
    kernels.merge_upsample(*[torch.zeros(1, 1, 2, 2)] * 2, torch.zeros(1, 2, 3, 3), None, backend="triton")
except RuntimeError as error:
    print(error)
"""
    )
    reason, refusal = told.splitlines()
    assert reason.startswith("triton cannot be imported")
    assert refusal == f"backend 'triton' is not available: {reason}"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_its_kernels_are_not_loaded() -> None:
    pytest.importorskip("triton")
    told = run(
        """
import sys, sharpmask_kernels as kernels
print(kernels.available_backends()["triton"])
print("sharpmask_kernels.backends.triton.kernels" in sys.modules)
"""
    )
    assert told.splitlines() == ["PyTorch finds no CUDA or ROCm device, and TRITON_INTERPRET=1 is not set", "False"]


@needs_interpreter
def test_more_pixels_than_32_bits_count_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutions, "MOST_PIXELS", 59)
    maps, weight = random(2, 1, 5, 6), random(1, 2, 3, 3)
    with pytest.raises(ValueError, match="maps must be of at most 59 pixels in all on backend 'triton', got 60"):
        kernels.merge_upsample(maps, maps, weight, None, backend="triton")
    kernels.merge_upsample(maps[..., 1:], maps[..., 1:], weight, None, backend="triton")


def test_a_refusal_names_what_came() -> None:
    cuda, cpu = torch.device("cuda", 0), torch.device("cpu")
    assert device.BACKEND.refusal(cuda, torch.float16) is None
    assert (device.BACKEND.refusal(cpu, torch.float16) is None) == device.INTERPRETED
    wanted = "torch.float32, torch.float16 or torch.bfloat16 on backend 'triton', got torch.float64"
    assert device.BACKEND.refusal(cuda, torch.float64) == f"maps must be of dtype {wanted}"

"""The matrix form of refine_windows: what it computes, reads and leaves to the other form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sharpmask_kernels.backends.cuda import device as cuda
from sharpmask_kernels.windows import logit

from .. import emulator
from ..contract.inputs import LAYOUTS, TOLERANCE, TopDownPass, channels_last, contiguous, windows_at
from .test_cuda import PAPER, SHARED, exactly, footprint, gpu, refined

pytestmark = pytest.mark.skipif(not cuda.emulated(), reason="gpu: needs the emulator, which stands in for it")

KB = 1 << 10
SIXTEEN = (torch.float16, torch.bfloat16)
SHAPES: list[dict[str, Any]] = [
    {"size": 4, "widths": (8, 4, 2)},  # the head reads two taps at a time
    {"size": 3, "widths": (3, 5, 2)},  # channels with zeros added; a head of an odd side
    {"size": 1, "widths": (2, 3)},
    {"size": 6, "widths": (2, 6, 3, 4), "convs": 2},
    {"size": 17, "widths": (4, 20)},  # two tiles of cells at a time, and of outputs
]


def laid_out(top_down: TopDownPass, layout: Callable[[Tensor], Tensor]) -> TopDownPass:
    top_down.horizontals = [[layout(m) for m in levels] for levels in top_down.horizontals]
    return top_down


def assert_rounded(found: Tensor, top_down: TopDownPass) -> None:
    """Close to the exact result, and not so close as without rounding between the layers."""
    expected = refined(exactly(top_down), "reference")
    error = float((found - expected).abs().max() / expected.abs().max())
    assert TOLERANCE[torch.float32] < error < 2 * TOLERANCE[top_down.encoding.dtype]


@pytest.mark.parametrize("dtype", SIXTEEN, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: str(shape["widths"]))
def test_it_computes_the_pass(shape: dict[str, Any], dtype: torch.dtype) -> None:
    for layout in LAYOUTS:
        top_down = laid_out(TopDownPass(dtype, count=2, **shape), layout)
        assert_rounded(refined(top_down), top_down)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: str(shape["widths"]))
def test_bits_are_those_of_its_logits(shape: dict[str, Any]) -> None:
    top_down = TopDownPass(torch.float16, count=3, **shape)
    # Where rows do not end with a byte, the other form computes the bits.
    whole_bytes = (shape["size"] << len(shape["widths"]) - 1) % 8 == 0
    with emulator.machine(matrix_unit=int(whole_bytes)):
        logits = refined(top_down)
    threshold = float(logits.mean().sigmoid())
    packed = refined(top_down, threshold=threshold)
    bits = np.unpackbits(packed.numpy(), axis=-1, bitorder="little")[..., : logits.shape[-1]]
    expected = logits.numpy() > logit(threshold)
    assert np.array_equal(bits, expected)
    assert 0.2 < expected.mean() < 0.8


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: str(shape["widths"]))
def test_nothing_unwritten_is_read_of_the_workspace(shape: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor what nothing depends on: tools that look for memory which was never written would report it."""
    new_empty, made = Tensor.new_empty, list[Tensor]()
    for fill in (0x55, 0xAA):

        def filled(self: Tensor, *size: Any, fill: int = fill, **options: Any) -> Tensor:
            made.append(new_empty(self, *size, **options).fill_(fill))
            return made[-1]

        monkeypatch.setattr(Tensor, "new_empty", filled)
        refined(TopDownPass(torch.float16, count=1, **shape))
    first, second = (x for x in made if x.dtype == torch.uint8)
    written = (first != 0x55) | (second != 0xAA)
    assert written[: int(written.nonzero().max())].all()  # what is read begins it


@pytest.mark.parametrize("dtype", SIXTEEN, ids=str)
def test_two_channels_are_loaded_as_one_word(dtype: torch.dtype) -> None:
    sides, widths = (2, 4, 8, 16), (16, 8, 4, 2)
    values = sum(side * side * channels for side, channels in zip(sides, widths, strict=True))
    for layout, bytes_of_a_load in ((channels_last, 4), (contiguous, 2)):
        top_down = laid_out(TopDownPass(dtype, count=1, size=2, widths=(3, *widths)), layout)
        top_down.windows = windows_at((0, 0, 1, 1))  # all inside
        emulator.map_loads()
        refined(top_down)
        assert emulator.map_loads() == {bytes_of_a_load: 2 * values // bytes_of_a_load}


OTHERS: dict[str, dict[str, Any]] = {
    "nearest": {"upsample": "nearest"},
    "zeros": {"padding_mode": "zeros"},
    "fp32": {"dtype": torch.float32},
    "no matrix unit": {"matrix_unit": 0},
    "little shared memory": {"size": 24, **gpu(26)},
}


@pytest.mark.parametrize("case", OTHERS)
def test_the_other_form_takes_the_rest(case: str) -> None:
    """It does not round between layers."""
    options = dict(OTHERS[case])
    dtype, size = options.pop("dtype", torch.bfloat16), options.pop("size", 6)
    machine = {name: options.pop(name) for name in list(options) if name not in ("upsample", "padding_mode")}
    top_down = TopDownPass(dtype, count=2, size=size, widths=(4, 4, 4))
    with emulator.machine(**machine):
        found = refined(top_down, **options)
    expected = refined(exactly(top_down), "reference", **options)
    assert float((found - expected).abs().max()) <= TOLERANCE[torch.float32] * float(expected.abs().max())


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_not_finite_stays_where_it_is_read(value: float) -> None:
    """Nothing that only fills a product reads it. In the head it may reach one cell more: two cells are computed from
    all taps of both."""
    top_down = TopDownPass(torch.bfloat16, count=1, size=16, widths=(3, 5, 2))
    top_down.encoding[0, 1, 3, 4] = value
    found, expected = refined(top_down).isfinite(), refined(exactly(top_down), "reference").isfinite()
    near = F.max_pool2d((~expected).float(), (1, 5), stride=1, padding=(0, 2)) > 0
    assert not (found & ~expected).any() and not (~found & ~near).any()
    assert 0 < (~found).sum() < near.numel() / 2


@pytest.mark.parametrize("capability", [c for c in SHARED if c >= 80])
def test_three_blocks_of_the_papers_pass_fit(capability: int) -> None:
    found = footprint(PAPER, gpu(*SHARED[capability]), "bilinear", "replicate")["matrix_bytes"]
    assert SHARED[capability][1] * KB // (found + KB) >= {164: 2, 228: 3}.get(SHARED[capability][1], 1)
    assert footprint(PAPER, gpu(*SHARED[capability]), "nearest", "replicate")["matrix_bytes"] == 0

"""Refinement modules: the whole form, the split form, patches, and windows of whole images."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharpmask.models import SharpMask
from sharpmask.models.refinement import PaperRefinement, RefinementModule, ReleasedRefinement
from sharpmask.models.trunk import Trunk
from sharpmask_kernels import Windows, horizontal, topk_windows

EXACT: dict[str, Any] = {"rtol": 1e-11, "atol": 1e-12}  # fp64, sums in another order


class NoTrunk(Trunk):
    """A trunk that has channels but computes nothing; the tests make up its maps."""

    channels = (6, 5, 4, 3)


def small(**options: Any) -> SharpMask:
    torch.manual_seed(0)
    options = {"window": 48, "context": 32, "features": 3, "code": 8, "mask_side": 4, "score_hidden": 4} | options
    model = SharpMask(NoTrunk(), **options).double().eval()
    # With the tiny default biases the ReLU would stop some channels everywhere.
    for p in model.parameters():
        if p.ndim == 1:
            nn.init.uniform_(p, -0.2, 0.6)
    return model


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def maps(rows: int, cols: int, batch: int = 1) -> list[Tensor]:
    """Trunk maps of strides 16, 8, 4, 2, the first with (rows, cols) cells."""
    return [noise(batch, c, rows << j, cols << j, seed=j) for j, c in enumerate(NoTrunk.channels)]


def windows(*cells: tuple[int, int], scale: int = 0, image: int = 0) -> Windows:
    row, col = torch.tensor(cells).T
    return Windows(torch.zeros(len(row)), torch.full_like(row, image), torch.full_like(row, scale), row, col)


def plain_conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Convolution with the edge cells repeated, which for one cell is symmetric padding."""
    height, width = x.shape[2:]
    rows = torch.arange(-1, height + 1).clamp(0, height - 1)
    cols = torch.arange(-1, width + 1).clamp(0, width - 1)
    return F.conv2d(x[:, :, rows][:, :, :, cols], conv.weight, conv.bias)


# One module.

MODULES = [
    pytest.param(lambda: PaperRefinement(6, 4, 3, 5), id="paper"),
    pytest.param(lambda: PaperRefinement(6, 4, 3, 5, skip_hidden=0), id="paper, one skip convolution"),
    pytest.param(lambda: ReleasedRefinement(6, 4, 3, 5), id="released"),
]


def written_down(module: RefinementModule, feature: Tensor, mask: Tensor) -> Tensor:
    if isinstance(module, PaperRefinement):
        skip = feature
        for conv in module.skip:
            skip = plain_conv(skip, conv).relu()
        merged = plain_conv(torch.cat([skip, mask], dim=1), module.merge)
        return F.interpolate(merged.relu(), scale_factor=2, mode="bilinear", align_corners=False)
    assert isinstance(module, ReleasedRefinement)
    first, _, second, _, third = module.h
    horizontal = plain_conv(plain_conv(plain_conv(feature, first).relu(), second).relu(), third)
    vertical = plain_conv(plain_conv(mask, module.v[0]).relu(), module.v[1])
    return (horizontal + vertical).relu().repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


@pytest.mark.parametrize("make", MODULES)
@pytest.mark.parametrize("size", [(5, 7), (1, 1), (2, 1)])
def test_module_is_what_is_written_down(make: Any, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    module = make().double()
    feature, mask = noise(2, 6, *size), noise(2, 4, *size, seed=1)
    expected = written_down(module, feature, mask)
    assert expected.shape == (2, 3, 2 * size[0], 2 * size[1])
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(module(feature, mask), expected, **EXACT)


@pytest.mark.parametrize("make", MODULES)
def test_gradients_are_those_of_what_is_written_down(make: Any) -> None:
    torch.manual_seed(0)
    module = make().double()
    feature, mask = noise(2, 6, 5, 7).requires_grad_(), noise(2, 4, 5, 7, seed=1).requires_grad_()
    out, expected = module(feature, mask), written_down(module, feature, mask)
    weight = noise(*out.shape, seed=2)
    inputs = [feature, mask, *module.parameters()]
    for a, b in zip(
        torch.autograd.grad((out * weight).sum(), inputs),
        torch.autograd.grad((expected * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, **EXACT)
        assert a.abs().max() > 0


@pytest.mark.parametrize("make", MODULES)
def test_the_horizontal_half_is_one_op(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("sharpmask.models.refinement")
    calls = []

    def recorded(feature: Tensor, convs: Any, **options: Any) -> Tensor:
        calls.append(len(convs))
        return horizontal(feature, convs, **options)

    monkeypatch.setattr(module, "horizontal", recorded)
    made = make().double()
    made(noise(1, 6, 3, 3), noise(1, 4, 3, 3))
    assert calls == [len(made.horizontal_convs())]


@pytest.mark.parametrize("kind", [PaperRefinement, ReleasedRefinement])
def test_hooks_of_horizontal_convolutions_run(kind: Any) -> None:
    module, feature = kind(8, 4, 4, 4), torch.randn(1, 8, 6, 7)
    last = module.skip[-1] if kind is PaperRefinement else module.h[0]
    with torch.no_grad():
        last.weight.mul_(2)
        last.bias.mul_(2)
        expected = module.horizontal(feature)
        last.weight.div_(2)
        last.bias.div_(2)
        last.register_forward_hook(lambda conv, args, out: 2 * out)
        torch.testing.assert_close(module.horizontal(feature), expected)


def test_released_width_of_few_channels() -> None:
    """The first convolution has 64 output channels, or half as many as it reads."""
    assert [ReleasedRefinement(c, 4, 2, 4).h[0].out_channels for c in (1024, 128, 64, 16)] == [64, 64, 32, 8]


# Whole models.

KINDS = pytest.mark.parametrize(
    "options", [{"refinement": "paper"}, {"refinement": "paper", "skip_hidden": 0}, {"refinement": "released"}], ids=str
)


@KINDS
@torch.no_grad()
def test_patch_refinement_is_what_is_written_down(options: dict[str, Any]) -> None:
    """The crop comes after the horizontal convolutions, or before them with ``crop_first``."""
    code, taps = noise(2, 8), [x[:, :, : 5 << j, : 5 << j] for j, x in enumerate(maps(5, 5, batch=2))]
    results = []
    for crop_first in (False, True):
        model = small(crop_first=crop_first, **options)
        mask = model.encoding(code).reshape(2, 32, 3, 3)
        for j, (module, tap) in enumerate(zip(model.refinement_modules(), taps, strict=True)):
            inner = (slice(None), slice(None), slice(1 << j, 4 << j), slice(1 << j, 4 << j))
            if crop_first:
                mask = written_down(module, tap[inner], mask)
            else:
                mask = module.add(module.horizontal(tap)[inner], mask)
        expected = plain_conv(mask, model.head)[:, 0]
        results.append(model.refine_patch(taps, code))
        torch.testing.assert_close(results[-1], expected, **EXACT)
    assert (results[0] - results[1]).abs().max() > 1e-3


@torch.no_grad()
def test_mask_encodings() -> None:
    model = small()
    code = noise(3, 8)
    horizontals = [h[:, :, : 3 << j, : 3 << j] for j, h in enumerate(model.horizontals(maps(3, 3, batch=3)))]
    encodings = model.top_down(code, horizontals)
    assert [tuple(e.shape) for e in encodings] == [(3, c, 3 << j, 3 << j) for j, c in enumerate((32, 16, 8, 4, 2))]
    assert torch.equal(encodings[0], model.mask_encoding(code))
    assert encodings[0].min() < 0  # linear: no ReLU on M1


@KINDS
@torch.no_grad()
def test_windows_of_several_scales_at_once(options: dict[str, Any]) -> None:
    """The inference path equals the differentiable one, for every scale and image."""
    model = small(**options)
    pyramid = [maps(4, 5, batch=2), maps(7, 3, batch=2)]
    chosen = topk_windows([noise(2, 1, 2, 3).float(), noise(2, 1, 5, 1).float()], 9)
    code = noise(len(chosen.score), 8, seed=3)
    out = model.refine_codes(code, [model.horizontals(taps) for taps in pyramid], chosen)
    assert out.shape == (18, 48, 48)
    assert set(chosen.scale.tolist()) == {0, 1}
    for scale, taps in enumerate(pyramid):
        here = chosen.scale == scale
        some = chosen.select(here)._replace(scale=torch.zeros(int(here.sum()), dtype=torch.int64))
        torch.testing.assert_close(out[here], model.refine_dense(taps, code[here], some), **EXACT)


@KINDS
@torch.no_grad()
def test_dense_windows_are_patches_of_the_horizontal_maps(options: dict[str, Any]) -> None:
    """A window cut from a dense map with its context equals the training patch, given the same horizontal maps."""
    model = small(**options)
    taps = maps(6, 7)
    code = noise(2, 8)
    dense = model.refine_dense(taps, code, windows((1, 2), (2, 1)))
    horizontals = model.horizontals(taps)
    for i, (row, col) in enumerate(((1, 2), (2, 1))):
        cut = [h[:, :, row << j : (row + 3) << j, col << j : (col + 3) << j] for j, h in enumerate(horizontals)]
        alone = model.head(model.top_down(code[i : i + 1], cut)[-1])[:, 0]
        torch.testing.assert_close(dense[i : i + 1], alone, **EXACT)


# Width of the border in which a window of a crop differs from the same window of the whole map. A horizontal path
# of n convolutions differs in n cells along the edge. A vertical path of m convolutions widens a border of r cells to
# r + m; nearest upsampling doubles it to 2r, bilinear upsampling widens it to 2r + 1. For M2 .. M5 and the logits:
#   paper (n = 3, m = 1):                7, 17, 37, 77, and 78 after the head
#   paper, one skip conv (n = 2, m = 1): 5, 13, 29, 61, and 62
#   released (n = 3, m = 2):             6, 16, 36, 76, and 77
# The maps of a training patch with 32 pixels of context have 1, 2, 4 and 8 cells of context, by which n is reduced:
# to 2 in the first stage, 1 in the second, 0 after.
RINGS = [
    ({"refinement": "paper"}, 0, [7, 17, 37, 77, 78]),
    ({"refinement": "paper", "skip_hidden": 0}, 0, [5, 13, 29, 61, 62]),
    ({"refinement": "released"}, 0, [6, 16, 36, 76, 77]),
    ({"refinement": "paper"}, 1, [5, 13, 29, 61, 62]),
    ({"refinement": "paper", "skip_hidden": 0}, 1, [3, 9, 21, 45, 46]),
    ({"refinement": "released"}, 1, [4, 12, 28, 60, 61]),
]


def ring(a: Tensor, b: Tensor) -> list[int]:
    """Width of the border in which a and b differ, along the top, bottom, left and right."""
    middle = a.shape[-1] // 2
    differs = (a - b).abs().amax((0, 1)) > 1e-11 * a.abs().max()
    lines = (
        differs[:middle, middle],
        differs[middle:, middle].flip(0),
        differs[middle, :middle],
        differs[middle, middle:].flip(0),
    )
    for line in lines:
        width = int(line.sum())
        assert line[:width].all()  # all of the border, and nothing inside
    return [int(line.sum()) for line in lines]


@pytest.mark.parametrize(("options", "context", "expected"), RINGS, ids=str)
@torch.no_grad()
def test_only_a_ring_differs_from_dense(options: dict[str, Any], context: int, expected: list[int]) -> None:
    model = small(window=160, mask_channels=(3, 3, 2, 2, 2), skip_channels=(2, 2, 2, 2), **options)
    # With positive weights no ReLU hides a difference.
    for p in model.parameters():
        p.abs_()
        if p.ndim == 4:
            p.clamp_(min=0.02)
    taps = [x.abs() for x in maps(14, 14)]
    code = noise(1, 8).abs()
    dense = [
        h[:, :, 2 << j : 12 << j, 2 << j : 12 << j] for j, h in enumerate(model.horizontals(taps))
    ]  # the window at cell (2, 2)
    low, high = 2 - context, 12 + context
    patch = [t[:, :, low << j : high << j, low << j : high << j] for j, t in enumerate(taps)]
    crops = [
        h[:, :, context << j : (context + 10) << j, context << j : (context + 10) << j]
        for j, h in enumerate(model.horizontals(patch))
    ]
    pairs = list(zip(model.top_down(code, crops)[1:], model.top_down(code, dense)[1:], strict=True))
    pairs.append((model.head(pairs[-1][0]), model.head(pairs[-1][1])))
    assert [ring(a, b) for a, b in pairs] == [[width] * 4 for width in expected]
    for (a, b), width in zip(pairs, expected, strict=True):
        inside = (slice(None), slice(None), slice(width, -width), slice(width, -width))
        assert a[inside].numel() > 0
        torch.testing.assert_close(a[inside], b[inside], **EXACT)
    # The model's patches and windows give the same two.
    model.context = 32 * context
    torch.testing.assert_close(model.refine_patch(patch, code), pairs[-1][0][:, 0], **EXACT)
    torch.testing.assert_close(model.refine_dense(taps, code, windows((2, 2))), pairs[-1][1][:, 0], **EXACT)

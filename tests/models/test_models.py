"""DeepMask, SharpMask and the DeepMask of 2015: sizes, heads, and that patches and whole images agree."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharpmask.models import DeepMask, SharpMask, build_model
from sharpmask.models.deepmask import MEAN, STD, OriginalDeepMask
from sharpmask.models.refinement import ReleasedRefinement
from sharpmask.models.trunk import Trunk
from sharpmask_kernels import Windows
from sharpmask_kernels.windows import grid_size

SMALL: dict[str, Any] = {"trunk": "efficientnet_lite0", "features": 8, "code": 16, "mask_side": 12, "score_hidden": 10}


class TinyTrunk(Trunk):
    """Four strided convolutions: the smallest network with maps at strides 16, 8, 4, 2."""

    channels = (6, 5, 4, 3)

    def __init__(self) -> None:
        super().__init__()
        widths = (3, *self.channels[::-1])
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in itertools.pairwise(widths))

    def forward(self, image: Tensor) -> list[Tensor]:
        taps = []
        for conv in self.convs:
            image = F.relu(conv(image))
            taps.append(image)
        return taps[::-1]


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def image(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def all_cells(rows: int, cols: int, index: int = 0) -> Windows:
    row, col = (x.flatten() for x in torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij"))
    return Windows(torch.zeros(len(row)), torch.full_like(row, index), torch.zeros_like(row), row, col)


# Parameter counts, from the layers of the papers.


def test_size_of_deepmask() -> None:
    """17.33M: ResNet-50 up to stride 16, the 512-vector, a mask of 56x56, head C."""
    bottlenecks = 0
    width = 64
    for planes, blocks in ((64, 3), (128, 4), (256, 6)):
        for i in range(blocks):
            bottlenecks += width * planes + planes * planes * 9 + planes * planes * 4
            bottlenecks += width * planes * 4 if i == 0 else 0
            width = planes * 4
    with torch.device("meta"):
        model = build_model("deepmask")
    assert count(model.trunk) == 3 * 64 * 49 + bottlenecks == 8_512_704
    assert count(model.reduce, model.encode) == 1024 * 128 + 128 + 12_800 * 512 + 512
    assert count(model.mask) == 513 * 56 * 56
    assert count(model.score) == 513 * 1024 + 1025
    assert count(model) == 17_333_121


def test_size_of_the_released_refinement() -> None:
    """2.75M, and the released network's layers."""
    with torch.device("meta"):
        model = build_model("sharpmask", refinement="released")
        without = count(build_model("deepmask"))
    modules = [m for m in model.refinements if isinstance(m, ReleasedRefinement)]
    assert len(modules) == 4
    assert count(model.encoding) == 513 * 32 * 100 == 1_641_600
    assert sum(count(m.v) for m in modules) == 18_450
    assert sum(count(m.h) for m in modules) == 1_090_466
    assert count(model.head) == 19
    assert count(model) - without == 2_750_535
    assert sum(p.numel() for p in model.refinement_parameters()) == 2_750_535
    widths = [[c.in_channels for c in m.h if isinstance(c, nn.Conv2d)] + [m.h[-1].out_channels] for m in modules]
    assert widths == [[1024, 64, 32, 16], [512, 64, 16, 8], [256, 64, 8, 4], [64, 32, 4, 2]]
    assert [[c.in_channels for c in m.v] + [m.v[-1].out_channels] for m in modules] == [
        [32, 32, 16],
        [16, 16, 8],
        [8, 8, 4],
        [4, 4, 2],
    ]


def test_size_of_the_papers_refinement() -> None:
    expected = 513 * 3200 + 19
    for features, k, out in ((1024, 32, 16), (512, 16, 8), (256, 8, 4), (64, 4, 2)):
        expected += (features * 9 + 1) * 64 + (64 * 9 + 1) * k + (2 * k * 9 + 1) * out
    with torch.device("meta"):
        assert count(build_model("sharpmask")) - count(build_model("deepmask")) == expected == 2_757_821


def test_size_of_the_original_deepmask() -> None:
    """About 75M: VGG-A, 512-vector and mask of 56x56, score branch of 512 and 1024 units."""
    vgg = sum(
        (a * 9 + 1) * b
        for a, b in zip((3, 64, 128, 256, 256, 512, 512, 512), (64, 128, 256, 256, 512, 512, 512, 512), strict=True)
    )
    mask = 513 * 512 + (512 * 14 * 14 + 1) * 512 + 513 * 56 * 56
    score = (512 * 7 * 7 + 1) * 512 + 513 * 1024 + 1025
    with torch.device("meta"):
        assert count(build_model("deepmask-original")) == vgg + mask + score == 75_844_545


# Patches, windows and whole images agree.


def models() -> list[DeepMask]:
    torch.manual_seed(0)
    small: dict[str, Any] = {"window": 48, "features": 7, "code": 9, "mask_side": 10, "score_hidden": 8}
    tiny = {
        "deepmask": DeepMask(TinyTrunk(), context=32, **small),
        "no context": DeepMask(TinyTrunk(), context=0, **small),
        "sharpmask": SharpMask(TinyTrunk(), context=64, **small),
        "original": OriginalDeepMask(TinyTrunk(), window=64, mask_side=10),
        "original, odd": OriginalDeepMask(TinyTrunk(), window=80, context=32, mask_side=10),
        "efficientnet": build_model("deepmask", window=48, **SMALL),
        "resnet18": build_model("deepmask", window=32, **SMALL | {"trunk": "resnet18"}),
    }
    return [pytest.param(model.eval(), id=name) for name, model in tiny.items()]  # type: ignore[misc]


@pytest.mark.parametrize("model", models())
@torch.no_grad()
def test_dense_heads_are_patch_heads_at_every_cell(model: DeepMask) -> None:
    padded = image(2, 3, model.window + 49, model.window + 30)  # odd sizes
    maps = model.dense(padded)
    rows, cols = maps.code.shape[2:]
    assert (rows, cols) == grid_size(49, 30, model.window)
    assert maps.score.shape == (2, 1, rows, cols)
    taps = model.taps(padded)
    assert all(torch.equal(a, b) for a, b in zip(taps, maps.taps, strict=True))
    close = {"rtol": 1e-4, "atol": 1e-5}
    for index in range(2):
        windows = all_cells(rows, cols, index)
        codes = model.window_codes(taps, windows)
        torch.testing.assert_close(codes, maps.code[index].flatten(1).T, **close)
    # The same cells as patches, whose maps include the context around the window (here zeros outside the image).
    border = model.context // 32
    surrounded = F.pad(taps[0], (border,) * 4)
    side = model.cells + 2 * border
    for row in range(rows):
        for col in range(cols):
            patch = [surrounded[:, :, row : row + side, col : col + side]]
            torch.testing.assert_close(model.patch_codes(patch), maps.code[:, :, row, col], **close)
            torch.testing.assert_close(model.score_patch(patch), maps.score[:, 0, row, col], **close)


@torch.no_grad()
def test_original_score_pools_pairs_of_cells() -> None:
    """Pooling starts at each window's first cell; if it started at the image's, windows would have stride 32."""
    torch.manual_seed(0)
    model = OriginalDeepMask(TinyTrunk(), window=64, mask_side=4).eval()
    padded = image(1, 3, 112, 96)
    maps = model.dense(padded)
    for row in range(4):
        for col in range(3):
            cells = maps.taps[0][0, :, row : row + 4, col : col + 4]
            pooled = torch.stack([cells[:, i : i + 2, j : j + 2].amax((1, 2)) for i in (0, 2) for j in (0, 2)], dim=1)
            torch.testing.assert_close(model.score(pooled.flatten())[0], maps.score[0, 0, row, col])


@pytest.mark.parametrize("model", models())
def test_forward(model: DeepMask) -> None:
    patch = image(2, 3, model.window + model.context, model.window + model.context)
    out = model(patch)
    taps = model.taps(patch)
    code = model.patch_codes(taps)
    assert torch.equal(out[0], model.coarse(code))
    assert out[0].shape == (2, model.mask.side, model.mask.side)
    assert torch.equal(out[-1], model.score_patch(taps))
    assert out[-1].shape == (2,)
    if isinstance(model, SharpMask):
        assert out.refined.shape == (2, model.window, model.window)
        assert torch.equal(out.refined, model.refine_patch(taps, code))


def test_images_are_normalised_in_the_model() -> None:
    seen: list[Tensor] = []
    model = DeepMask(TinyTrunk(), window=48)
    model.trunk.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = image(1, 3, 80, 80)
    model(x)
    for channel in range(3):
        torch.testing.assert_close(seen[0][0, channel], (x[0, channel] - MEAN[channel]) / STD[channel])
    assert not {"mean", "std"} & model.state_dict().keys()


def test_score_dropout_is_off_in_evaluation() -> None:
    torch.manual_seed(0)
    model = DeepMask(TinyTrunk(), window=48)
    code = torch.randn(4, 512)
    assert not torch.equal(model.train().score(code), model.score(code))
    assert torch.equal(model.eval().score(code), model.score(code))


@torch.no_grad()
def test_half_precision() -> None:
    """A model in bf16 equals the model up to rounding; its refined logits are fp32."""
    torch.manual_seed(0)
    model = SharpMask(TinyTrunk(), window=48, features=7, code=9).eval()
    padded = image(1, 3, 96, 96)

    def refined() -> Tensor:
        dtype = next(model.parameters()).dtype
        maps = model.dense(padded.to(dtype))
        windows = all_cells(*maps.code.shape[2:])
        return model.refine_codes(maps.code[0].flatten(1).T, [model.horizontals(maps.taps)], windows)

    expected = refined()
    model.bfloat16()
    out = refined()
    assert out.dtype == torch.float32
    # The tolerance is that of a dozen convolutions, each rounded to 2^-8.
    torch.testing.assert_close(out, expected, rtol=0, atol=0.05 * expected.abs().max().item())


# SharpMask beside DeepMask.


@torch.no_grad()
def test_deepmask_loads_into_sharpmask() -> None:
    torch.manual_seed(0)
    first = build_model("deepmask", window=48, **SMALL).eval()
    second = build_model("sharpmask", window=48, **SMALL).eval()
    missing, unexpected = second.load_state_dict(first.state_dict(), strict=False)
    assert not unexpected
    assert {name.split(".")[0] for name in missing} == {"encoding", "refinements", "head"}
    patch = image(1, 3, 80, 80)
    mask, score = first(patch)
    out = second(patch)
    assert torch.equal(out.coarse, mask)
    assert torch.equal(out.score, score)


@pytest.mark.parametrize("refinement", ["paper", "released"])
def test_refinement_parameters(refinement: str) -> None:
    """The names of what stage two trains. A refined mask has gradients in all of it, and in the trunk."""
    torch.manual_seed(0)
    model = SharpMask(TinyTrunk(), refinement=refinement, window=48, mask_side=8)
    chosen = {id(p) for p in model.refinement_parameters()}
    names = {name for name, p in model.named_parameters() if id(p) in chosen}
    convs = ("skip.0", "skip.1", "merge") if refinement == "paper" else ("h.0", "h.2", "h.4", "v.0", "v.1")
    modules = ["encoding", "head", *(f"refinements.{i}.{conv}" for i in range(4) for conv in convs)]
    assert names == {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}
    model(image(2, 3, 80, 80)).refined.square().sum().backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    # The widest stages can lose a channel to ReLU, but no tensor is left out.
    assert with_gradient == {n for n, _ in model.named_parameters() if not n.startswith(("mask.", "score."))}

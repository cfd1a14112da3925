"""The form for inference: the same maps as the plain model's, up to rounding, and made anew when the model changes."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torchvision.ops import FrozenBatchNorm2d

from sharpmask.geometry import GREY
from sharpmask.models import DeepMask, SearchConfig, SharpMask, build_model, inference
from sharpmask.models.trunk import InvertedResidual
from sharpmask.search import ProposalGenerator
from sharpmask_kernels import Windows, topk_windows

MODELS = {
    "resnet50": {"trunk": "resnet50"},
    "resnet18, padded by reflection": {"trunk": "resnet18", "trunk_padding": "reflect"},
    "mobile": {"trunk": "efficientnet_lite0"},
    "mobile, wider and deeper": {"trunk": "efficientnet_lite2"},
    "score narrower than code": {"trunk": "efficientnet_lite0", "code": 64, "score_hidden": 32},
    "released refinement": {"trunk": "resnet18", "refinement": "released"},
}


def build(name: str) -> DeepMask:
    torch.manual_seed(0)
    options = {"window": 48, "context": 32, "features": 8, "code": 24, "mask_side": 12, "score_hidden": 40}
    built = build_model("sharpmask", **(options | MODELS[name])).eval()  # type: ignore[arg-type]
    for module in built.modules():
        if isinstance(module, FrozenBatchNorm2d):
            for statistic in (module.weight, module.running_var):
                statistic.uniform_(0.5, 1.5)
            for statistic in (module.bias, module.running_mean):
                statistic.normal_(0, 0.1)
    return built


@pytest.fixture(params=[*MODELS, "original"])
def model(request: pytest.FixtureRequest) -> DeepMask:
    return build_model("deepmask-original").eval() if request.param == "original" else build(request.param)


@pytest.fixture(params=["mobile", "released refinement"])
def refiner(request: pytest.FixtureRequest) -> SharpMask:
    built = build(request.param)
    assert isinstance(built, SharpMask)
    return built


def padded(model: DeepMask, picture: Tensor) -> Tensor:
    return F.pad(picture, (model.window // 2,) * 4, value=GREY)


def assert_close(a: Tensor, b: Tensor) -> None:
    assert a.shape == b.shape
    torch.testing.assert_close(a, b, rtol=0, atol=2e-5 * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize("size", [(64, 96), (53, 71), (1, 130)])
@torch.inference_mode()
def test_maps_are_those_of_the_plain_model(model: DeepMask, size: tuple[int, int]) -> None:
    picture = torch.rand(1, 3, *size)
    plain, fast = model.dense(padded(model, picture)), model.for_inference()(picture)
    for a, b in zip(fast.taps, plain.taps, strict=True):
        assert_close(a, b)
    assert_close(fast.score, plain.score)
    windows = topk_windows([plain.score], 20)
    codes = model.for_inference().codes([fast.codes], windows)
    assert_close(codes, plain.code[0, :, windows.row, windows.col].T)


@torch.inference_mode()
def test_horizontal_maps_are_those_of_the_plain_model_where_windows_lie(refiner: SharpMask) -> None:
    taps = refiner.taps(padded(refiner, torch.rand(1, 3, 200, 300)))
    rows, cols = torch.tensor([0, 0, 5, 11, 5]), torch.tensor([0, 3, 17, 17, 3])
    chosen = torch.tensor([True, True, True, True, False])
    plain, fast = refiner.horizontals(taps), refiner.horizontals_at([*taps], rows, cols, chosen)
    only = refiner.horizontals_at([*taps], rows[:4], cols[:4], chosen[:4])
    assert all(torch.equal(a, b) for a, b in zip(fast, only, strict=True))
    for stage, (a, b) in enumerate(zip(fast, plain, strict=True)):
        assert a.shape == b.shape
        side = refiner.cells << stage
        for row, col in zip(rows[:4].tolist(), cols[:4].tolist(), strict=True):
            y, x = row << stage, col << stage
            assert_close(a[:, :, y : y + side, x : x + side], b[:, :, y : y + side, x : x + side])
        assert (a == 0).all(1).any()


@torch.inference_mode()
def test_windows_beyond_the_maps_are_harmless(refiner: SharpMask) -> None:
    taps = refiner.taps(padded(refiner, torch.rand(1, 3, 64, 64)))
    for row in (-5, 500):
        place = torch.tensor([row])
        assert len(refiner.horizontals_at([*taps], place, place, torch.tensor([True]))) == 4
    none = torch.zeros(0, dtype=torch.int64)
    assert not refiner.horizontals_at([*taps], none, none, none.bool())[0].any()


@pytest.mark.parametrize("name", ["resnet50", "released refinement"])
def test_large_pictures_give_the_same_masks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The finest map of their trunk is computed twice instead of kept."""
    generator = ProposalGenerator(build(name), top_n=20, search=SearchConfig(scales=(0.5, 1.0)))
    photo = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    found, grown = [], []
    for limit in (10**9, 96 * 128):
        monkeypatch.setattr(inference, "LARGE", limit)
        found.append(generator.generate(photo))
        grown.append(generator.grow(photo)[1])
    small, large = found
    assert small.scores.tolist() == large.scores.tolist() and small.rles == large.rles
    assert all(map(np.array_equal, *grown))


def test_it_is_made_once_and_anew_when_the_model_changes() -> None:
    model = build("mobile")
    first = model.for_inference()
    assert model.for_inference() is first
    with torch.no_grad():
        model.reduce.weight += 1
    second = model.for_inference()
    assert second is not first
    picture = torch.rand(1, 3, 40, 40)
    with torch.inference_mode():
        assert_close(second(picture).score, model.dense(padded(model, picture)).score)
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    assert model.for_inference() is not second
    with torch.no_grad():
        model.reduce.weight[0] = torch.nan
    assert model.for_inference() is model.for_inference()


@pytest.mark.parametrize(
    "change",
    [
        lambda conv: conv.weight.data.mul_(2),
        lambda conv: conv.weight.detach().numpy().fill(0.1),
        lambda conv: prune.l1_unstructured(conv, "weight", 0.5),
        lambda conv: parametrizations.weight_norm(conv),
        lambda conv: conv.register_forward_hook(lambda module, inputs, out: out * 2),
        lambda conv: setattr(conv, "forward", lambda x: nn.Conv2d.forward(conv, x) * 2),
    ],
    ids=["data", "NumPy", "pruning", "weight norm", "hook", "forward"],
)
@pytest.mark.parametrize("name", ["mobile", "resnet50"])
def test_no_change_is_missed(name: str, change: Callable[[nn.Module], object]) -> None:
    model = build(name)
    conv = [module for module in model.trunk.modules() if isinstance(module, nn.Conv2d)][3]
    for place in (conv, model.reduce):
        model.for_inference()
        change(place)
        picture = torch.rand(1, 3, 40, 40)
        with torch.inference_mode():
            fast, plain = model.for_inference()(picture), model.dense(padded(model, picture))
        assert_close(fast.taps[0], plain.taps[0])
        assert_close(fast.score, plain.score)


@pytest.mark.parametrize(
    "place", ["reduce", "encode", "score.1", "refinements.1.merge", "refinements.0.skip.0", "head"]
)
def test_weights_loaded_into_a_pruned_model_are_read(place: str) -> None:
    pruned, model = build("mobile"), build("mobile")
    with torch.no_grad():
        pruned.get_submodule(place).weight.normal_()  # type: ignore[operator]
    prune.l1_unstructured(pruned.get_submodule(place), "weight", 0.5)
    prune.identity(model.get_submodule(place), "weight")
    photo = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    search = SearchConfig(scales=(1.0,))
    ProposalGenerator(model, 20, search=search).generate(photo)
    model.load_state_dict(pruned.state_dict())
    found = ProposalGenerator(model, 20, search=search).generate(photo)
    prune.remove(pruned.get_submodule(place), "weight")
    expected = ProposalGenerator(pruned, 20, search=search).generate(photo)
    assert found.rles == expected.rles
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-6)
    assert not model.get_submodule(place).weight.is_inference()  # type: ignore[operator]


def test_a_copy_of_a_model_does_not_share_it() -> None:
    model = build("resnet18, padded by reflection")
    model.for_inference()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.reduce.weight.zero_()
        assert other.reduce.bias is not None
        other.reduce.bias.zero_()
    windows = Windows(torch.zeros(1), *torch.zeros(4, 1, dtype=torch.int64))
    with torch.inference_mode():
        form = other.for_inference()
        code = form.codes([form(torch.rand(1, 3, 8, 8)).codes], windows)
    assert_close(code, other.encode.bias.detach()[None])


class Doubled(nn.Module):
    """As adapters do, it has the tensors of what it wraps and computes more."""

    def __init__(self, inner: nn.Conv2d) -> None:
        super().__init__()
        self.inner, self.weight, self.bias = inner, inner.weight, inner.bias

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.inner(x)) * 2


def test_wrapped_convolutions_are_called() -> None:
    model = build("mobile")
    model.reduce = Doubled(model.reduce)  # type: ignore[assignment]
    blocks = [block for block in model.trunk.modules() if isinstance(block, InvertedResidual)]
    blocks[2].project = Doubled(blocks[2].project)  # type: ignore[assignment]
    picture = torch.rand(1, 3, 40, 40)
    with torch.inference_mode():
        assert_close(model.for_inference()(picture).score, model.dense(padded(model, picture)).score)


def test_a_model_made_in_inference_mode_may_change() -> None:
    with torch.inference_mode():
        model = build("mobile")
        first = model.for_inference()
        model.encode.weight.mul_(2)
        assert model.for_inference() is not first


def test_a_model_is_pickled_after_a_search(model: DeepMask) -> None:
    model.for_inference()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    picture = torch.rand(1, 3, 40, 40)
    with torch.inference_mode():
        assert torch.equal(again.for_inference()(picture).score, model.for_inference()(picture).score)


def test_it_is_no_part_of_the_state(model: DeepMask) -> None:
    names = list(model.state_dict())
    model.for_inference()
    assert list(model.state_dict()) == names


class Scaled(nn.Module):
    def __init__(self, trunk: nn.Module, factor: float) -> None:
        super().__init__()
        self.trunk, self.factor = trunk, factor

    def forward(self, image: Tensor) -> list[Tensor]:
        return [self.factor * x for x in self.trunk(image)]


def test_another_wrapper_of_the_same_tensors_is_another_form(tiny_sharpmask: SharpMask) -> None:
    model, picture = copy.deepcopy(tiny_sharpmask), torch.rand(1, 3, 64, 80)
    trunk, taps = model.trunk, []
    for factor in (1.0, 2.0):
        model.trunk = Scaled(trunk, factor)  # type: ignore[assignment]
        with torch.inference_mode():
            taps.append(model.for_inference()(picture).taps[0])
    torch.testing.assert_close(taps[1], 2 * taps[0])

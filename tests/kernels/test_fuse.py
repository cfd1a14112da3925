"""fuse changes only how a model is computed. It leaves what it cannot compute the same way, and says why."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.utils import parametrizations, prune, spectral_norm
from torch.utils.checkpoint import checkpoint

from sharpmask_kernels import merge_upsample
from sharpmask_kernels.fuse import FuseReport, fuse, register_adapter
from sharpmask_kernels.modules import Refinement
from tests.kernels.fusing import OpsCalled

SAME = {"rtol": 1e-11, "atol": 1e-11}  # fp64; the ops may add up in another order


def maps(*channels: int, size: tuple[int, int] = (5, 4)) -> list[Tensor]:
    torch.manual_seed(7)
    return [torch.randn(2, c, *size, dtype=torch.float64, requires_grad=True) for c in channels]


def results(model: nn.Module, *inputs: Tensor, **options: Any) -> list[Tensor]:
    """The output and the gradients of all inputs and parameters."""
    out = model(*inputs, **options)
    leaves = [*inputs, *model.parameters()]
    return [out, *torch.autograd.grad(out.sin().sum(), leaves, allow_unused=True, materialize_grads=True)]


def ops_of(model: nn.Module, *inputs: Tensor) -> list[str]:
    with OpsCalled() as called, torch.no_grad():
        model(*inputs)
    return called.names


def check_fused(model: nn.Module, inputs: list[Tensor], ops: list[str]) -> FuseReport:
    """fuse finds as many modules as there are ``ops``, the ops run, and nothing else changes."""
    plain = copy.deepcopy(model)
    parameters = dict(model.named_parameters())
    report = fuse(model)
    assert ops_of(model.eval(), *inputs) == ops
    assert int(report) == len(ops)
    for mode in (True, False):
        torch.testing.assert_close(results(model.train(mode), *inputs), results(plain.train(mode), *inputs), **SAME)
    assert dict(model.named_parameters()).keys() == parameters.keys()
    assert all(p is parameters[name] for name, p in model.named_parameters())
    return report


def check_left(model: nn.Module, inputs: list[Tensor], left: dict[str, str]) -> None:
    """fuse changes no object and reports each as left."""
    model = model.double()
    expected = results(model, *inputs)
    before = {name: (type(m), dict(vars(m))) for name, m in model.named_modules()}
    report = fuse(model)
    assert (report.swapped, report.left) == ((), left)
    assert {name: (type(m), dict(vars(m))) for name, m in model.named_modules()} == before
    torch.testing.assert_close(results(model, *inputs), expected, rtol=0, atol=0)


# A user's model: three levels, each in another style, and a sum at the end.


class Lateral(nn.Sequential):
    def __init__(self, ins: int, outs: int) -> None:
        super().__init__(nn.Conv2d(ins, outs, 3, padding=1), nn.ReLU(inplace=True))


class Block(nn.Module):
    """Functional; the mask first."""

    def __init__(self, ins: int, side: int, outs: int) -> None:
        super().__init__()
        self.lat = Lateral(ins, 3)
        self.fuse_conv = nn.Conv2d(side + 3, outs, kernel_size=3, padding=1, bias=False)

    def forward(self, encoded: Tensor, coarse: Tensor | None = None) -> Tensor:
        skip = self.lat(encoded)
        if coarse is None:
            return F.interpolate(skip, scale_factor=2)
        out = F.relu(self.fuse_conv(torch.cat((coarse, skip), 1)), inplace=True)
        return F.interpolate(out, scale_factor=2, mode="bilinear", align_corners=False)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 3, stride=2, padding=1), nn.BatchNorm2d(o), nn.ReLU(inplace=True))
            for i, o in ((3, 4), (4, 6), (6, 8))
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.deep = Block(8, 8, 5)
        self.side = nn.Conv2d(6, 4, 3, padding=1, padding_mode="replicate")
        self.join = nn.Conv2d(4 + 5, 4, 3, padding=1, padding_mode="replicate")
        self.twice = nn.Upsample(scale_factor=2, mode="nearest")
        self.across = nn.Conv2d(4, 3, 1)
        self.down = nn.Conv2d(4, 3, 3, padding="same")

    def forward(self, shallow: Tensor, middle: Tensor, deep: Tensor) -> Tensor:
        x = self.deep(deep, deep)
        x = self.twice(self.join(torch.cat([self.side(middle).relu(), x], dim=-3)).relu_())
        x = torch.relu(self.across(shallow) + self.down(x))
        return F.interpolate(x, scale_factor=(2, 2), mode="bilinear")


class TheirModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc = Encoder()
        self.dec = Decoder()
        self.drop = nn.Dropout(0.2)
        self.out = nn.Conv2d(3, 1, 1)

    def forward(self, image: Tensor, log: bool = False) -> Tensor:
        logits = self.out(self.drop(self.dec(*self.enc(image))))
        return F.logsigmoid(logits) if log else logits


THEIR_OPS = ["refine", "refine", "add_upsample"]
IMAGE = {"size": (16, 24)}


def their_model() -> TheirModel:
    torch.manual_seed(1)
    return TheirModel().double()


def test_a_model_of_ones_own_gives_the_same_results() -> None:
    model, plain = their_model(), their_model()
    report = fuse(model)
    assert report.swapped == ("dec.deep", "dec.join", "dec.down")
    assert report.left == {}
    assert str(report).splitlines() == ["swapped: 3", "  dec.deep", "  dec.join", "  dec.down", "left: 0"]
    image = maps(3, **IMAGE)
    assert ops_of(model.eval(), *image) == THEIR_OPS
    for mode in (True, False):
        for log in (True, False):
            found = []
            for each in (model, plain):
                torch.manual_seed(2)  # dropout
                found.append(results(each.train(mode), *image, log=log))
            torch.testing.assert_close(*found, **SAME)


def test_it_stays_the_users_object() -> None:
    model = their_model()
    names = {name: (module, module.training) for name, module in model.eval().dec.train().named_modules()}
    parameters = dict(model.named_parameters())
    calls: list[str] = []
    model.dec.deep.register_forward_hook(lambda *_: calls.append("hook"))
    model.dec.deep.register_forward_pre_hook(lambda *_: calls.append("pre-hook"))
    assert int(fuse(model)) == 3
    assert {name: (module, module.training) for name, module in model.dec.named_modules()} == names
    assert dict(model.named_parameters()).keys() == parameters.keys()
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert isinstance(model.dec.deep, Block) and isinstance(model.dec, Decoder)
    assert repr(model.dec.deep).startswith("FusedBlock(")
    ops_of(model, *maps(3, **IMAGE))
    assert calls == ["pre-hook", "hook"]


def test_checkpoints_go_both_ways() -> None:
    old, fused, fresh = their_model(), TheirModel().double(), TheirModel().double()
    fuse(fused)
    fused.load_state_dict(old.state_dict(), strict=True)
    fresh.load_state_dict(fused.state_dict(), strict=True)
    image = maps(3, **IMAGE)
    for model in (old, fused, fresh):
        model.eval()
    torch.testing.assert_close(results(fused, *image), results(old, *image), **SAME)
    torch.testing.assert_close(results(fresh, *image), results(old, *image), rtol=0, atol=0)


def test_it_compiles_as_one_graph() -> None:
    model, image = their_model().eval(), maps(3, **IMAGE)
    expected = results(model, *image)
    fuse(model)
    torch.testing.assert_close(
        results(torch.compile(model, fullgraph=True, backend="aot_eager"), *image), expected, **SAME
    )


def test_it_exports_with_the_names_of_its_arguments() -> None:
    block = Block(4, 3, 2).double()
    inputs = [m.detach() for m in maps(4, 3)]
    expected = block(*inputs)
    assert int(fuse(block)) == 1
    program = torch.export.export(block, (), {"encoded": inputs[0], "coarse": inputs[1]})
    assert list(program.graph_signature.user_inputs) == ["encoded", "coarse"]
    torch.testing.assert_close(program.module()(encoded=inputs[0], coarse=inputs[1]), expected, **SAME)


def test_a_deep_copy_is_fused_and_independent() -> None:
    model, image = their_model().eval(), maps(3, **IMAGE)
    fuse(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    assert ops_of(twin, *image) == ops_of(model, *image) == THEIR_OPS
    assert twin(*image).abs().max() == 0
    assert set(map(id, twin.parameters())).isdisjoint(map(id, model.parameters()))


def test_a_pickle_holds_the_plain_model() -> None:
    model, image = their_model().eval(), maps(3, **IMAGE)
    fuse(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for loaded in (torch.load(file, weights_only=False), pickle.loads(pickle.dumps(model))):
        assert type(loaded) is TheirModel and type(loaded.dec.deep) is Block
        assert vars(loaded.dec.deep).keys() == vars(their_model().dec.deep).keys()
        torch.testing.assert_close(results(loaded, *image), results(model, *image), **SAME)
        assert int(fuse(loaded)) == 3


def test_a_second_fuse_finds_nothing_new() -> None:
    model = their_model()
    fuse(model)
    again = fuse(model)
    assert (int(again), again.left) == (0, {})


def test_it_trains_in_the_autocast_dtype() -> None:
    model, plain, image = their_model().float(), their_model().float(), maps(3, **IMAGE)[0].float()
    fuse(model)
    losses = []
    for each in (model.eval(), plain.eval()):
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(each(image).float().square().mean())
        losses[-1].backward()
    torch.testing.assert_close(losses[0], losses[1], rtol=0.03, atol=0.003)  # maps rounded to 2^-8
    assert all(p.grad is not None for p in model.parameters())


def test_a_checkpointed_module_is_fused_inside() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block(4, 3, 2)

        def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
            return checkpoint(self.block, feature, mask, use_reentrant=False)

    model = Outer().double()
    report = check_fused(model, maps(4, 3), ["refine"])
    assert report.left == {}


# One level in all the ways to write it.


class Level(nn.Module):
    """ReLU(Conv), concatenate, convolve, ReLU, upsample, each replaceable."""

    def __init__(self, skip: nn.Module | None = None, merge: nn.Module | None = None, **parts: Any) -> None:
        super().__init__()
        self.skip = skip or nn.Conv2d(4, 3, 3, padding=1)
        self.merge = merge or nn.Conv2d(3 + 2, 2, 3, padding=1)
        self.relu = parts.pop("relu", F.relu)
        self.cat = parts.pop("cat", lambda skip, mask: torch.cat([skip, mask], 1))
        self.up = parts.pop("up", lambda x: F.interpolate(x, scale_factor=2))
        self.gain = 1.0
        assert not parts

    def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
        return self.up(self.relu(self.merge(self.cat(self.relu(self.skip(feature)), mask * self.gain))))


SPELLINGS: dict[str, Callable[[], dict[str, Any]]] = {
    "functional": lambda: {},
    "torch.relu": lambda: {"relu": torch.relu},
    "method relu": lambda: {"relu": lambda x: x.relu()},
    "method relu_": lambda: {"relu": lambda x: x.relu_()},
    "functional relu in place": lambda: {"relu": lambda x: F.relu(x, True)},
    "nn.ReLU": lambda: {"relu": nn.ReLU()},
    "nn.ReLU in place": lambda: {"relu": nn.ReLU(inplace=True)},
    "nn.Upsample": lambda: {"up": nn.Upsample(scale_factor=2)},
    "nn.Upsample bilinear": lambda: {"up": nn.Upsample(None, 2, "bilinear", False)},
    "nn.UpsamplingNearest2d": lambda: {"up": nn.UpsamplingNearest2d(scale_factor=2)},
    "nearest-exact": lambda: {"up": lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact")},
    "bilinear": lambda: {"up": lambda x: F.interpolate(x, None, 2.0, "bilinear")},
    "two factors": lambda: {"up": lambda x: F.interpolate(x, scale_factor=[2.0, 2], mode="bilinear")},
    "torch.concat": lambda: {"cat": lambda *maps: torch.concat(maps, dim=-3)},
    "cat by names": lambda: {"cat": lambda *maps: torch.cat(tensors=maps, dim=1)},
    "cat by axis": lambda: {"cat": lambda *maps: torch.cat(maps, axis=1)},
    "mask first": lambda: {"cat": lambda skip, mask: torch.cat([mask, skip], 1)},
    "no bias": lambda: {"merge": nn.Conv2d(5, 2, 3, padding=1, bias=False)},
    "same": lambda: {"merge": nn.Conv2d(5, 2, 3, padding="same")},
    "replicate": lambda: {
        "skip": nn.Conv2d(4, 3, 3, padding=1, padding_mode="replicate"),
        "merge": nn.Conv2d(5, 2, 3, padding=(1, 1), padding_mode="replicate"),
    },
    "nn.Identity between": lambda: {"merge": nn.Sequential(nn.Conv2d(5, 2, 3, padding=1), nn.Identity())},
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_one_refine(spelling: str) -> None:
    torch.manual_seed(0)
    report = check_fused(Level(**SPELLINGS[spelling]()).double(), maps(4, 2), ["refine"])
    assert report.left == {}


# If the skip is not the module's own, the user's code still computes it.
OWN_SKIPS: dict[str, Callable[[], nn.Module]] = {
    "5x5": lambda: nn.Conv2d(4, 3, 5, padding=2),
    "reflection": lambda: nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect"),
    "other padding": lambda: nn.Conv2d(4, 3, 3, padding=1, padding_mode="replicate"),
    "norm": lambda: nn.Sequential(nn.Conv2d(4, 3, 3, padding=1), nn.BatchNorm2d(3)),
    "weight norm": lambda: parametrizations.weight_norm(nn.Conv2d(4, 3, 3, padding=1)),
}


@pytest.mark.parametrize("kind", OWN_SKIPS)
def test_another_skip_stays_and_the_merge_is_swapped(kind: str) -> None:
    torch.manual_seed(0)
    check_fused(Level(OWN_SKIPS[kind]()).double(), maps(4, 2), ["merge_upsample"])


class SkipUsedTwice(Level):
    def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
        skip = F.relu(self.skip(feature))
        merged = F.relu(self.merge(torch.cat([skip, mask], 1)))
        return F.interpolate(merged, scale_factor=2) + skip.mean()


class SkipTwice(Level):
    def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
        skip = F.relu(self.skip(feature))
        both = torch.cat([skip, skip], 1)
        return F.interpolate(F.relu(self.merge(both)), scale_factor=2) + mask.mean()


class FeatureOverwritten(Level):
    def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
        feature = feature * 2
        skip = F.relu(self.skip(feature))
        feature += 1
        return F.interpolate(F.relu(self.merge(torch.cat([skip, mask], 1))), scale_factor=2) + feature.mean()


def test_a_skip_that_others_need_is_theirs() -> None:
    check_fused(SkipUsedTwice().double(), maps(4, 2), ["merge_upsample"])


def test_a_map_joined_to_itself_is_no_skip() -> None:
    check_fused(SkipTwice(merge=nn.Conv2d(6, 2, 3, padding=1)).double(), maps(4, 2), ["merge_upsample"])


def test_a_feature_overwritten_is_read_in_time() -> None:
    model, inputs = FeatureOverwritten().double(), maps(4, 2)
    with torch.no_grad():  # in training PyTorch itself refuses it
        expected = model(*inputs)
        assert int(fuse(model)) == 1
        torch.testing.assert_close(model(*inputs), expected, **SAME)
    assert ops_of(model, *inputs) == ["merge_upsample"]


def test_parts_that_give_none_or_lists_are_looked_into() -> None:
    class Aux(nn.Module):
        def forward(self, feature: Tensor) -> Tensor | None:
            return None

    class Halves(nn.Module):
        def forward(self, feature: Tensor) -> list[Tensor]:
            return [feature[:, :2], feature[:, 2:]]

    class Whole(Level):
        def __init__(self) -> None:
            super().__init__(relu=nn.ReLU())
            self.aux = Aux()
            self.halves = Halves()
            self.pool = nn.Sequential(nn.AvgPool2d(1))

        def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
            if (aux := self.aux(feature)) is not None:
                feature = feature + aux
            halves = [half for half in self.halves(feature) if half is not None]
            return super().forward(self.pool(torch.cat(halves[::-1], 1)), mask)

    model, calls = Whole().double(), []
    check_fused(model, maps(4, 2), ["refine"])
    model.pool.register_forward_hook(lambda *_: calls.append(1))  # a part that the generated code still calls
    assert ops_of(model, *maps(4, 2)) == ["refine"]
    assert len(calls) == 1


def test_one_convolution_in_two_places() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.level = Level()
            self.again = Level(merge=self.level.merge)

        def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
            mask = self.level(feature, mask)
            feature = F.avg_pool2d(feature, 1).repeat(1, 1, 2, 2)
            return self.again(feature, mask) + self.level(feature, mask)

    model, inputs = Shared().double(), maps(4, 2)
    expected = results(model, *inputs)
    assert fuse(model).swapped == ("level", "again")
    assert ops_of(model, *inputs) == ["refine"] * 3
    torch.testing.assert_close(results(model, *inputs), expected, **SAME)


def test_several_in_one_forward_are_named_by_their_convolutions() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.merges = nn.ModuleList(nn.Conv2d(4 + 2, 2, 3, padding=1) for _ in range(3))

        def forward(self, feature: Tensor, x: Tensor) -> Tensor:
            for merge in self.merges:
                x = F.interpolate(F.relu(merge(torch.cat([feature, x], 1))), scale_factor=2, mode="bilinear")
                feature = F.interpolate(feature, scale_factor=2)
            return x

    report = check_fused(nn.Sequential(Decoder()).double()[0], maps(4, 2), ["merge_upsample"] * 3)
    assert report.swapped == ("merges.0", "merges.1", "merges.2")
    assert report.left == {
        "": "interpolate stands after the upsampling, not a 3x3 convolution; "
        "interpolate stands before the upsampling, not a ReLU"
    }


class Sum(nn.Module):
    """ReLU(horizontal + Conv(mask)), upsampled."""

    def __init__(self, add: Callable[[Tensor, Tensor], Tensor], horizontal: nn.Module | None = None) -> None:
        super().__init__()
        self.add = add
        self.horizontal = horizontal or nn.Conv2d(4, 3, 1)
        self.vertical = nn.Conv2d(2, 3, 3, padding=1)

    def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
        total = self.add(self.horizontal(feature), self.vertical(mask))
        return F.interpolate(F.relu(total), scale_factor=2, mode="bilinear")


def add_assign(x: Tensor, y: Tensor) -> Tensor:
    x += y
    return x


SUMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "+": lambda x, y: x + y,
    "+, turned": lambda x, y: y + x,
    "+=": add_assign,
    "torch.add": torch.add,
    "add": lambda x, y: x.add(y),
    "add_": lambda x, y: y.add_(x),
    "broadcast": lambda x, y: x[:1, :, :1] + y,
}


@pytest.mark.parametrize("spelling", SUMS)
def test_a_sum_is_one_add_upsample(spelling: str) -> None:
    torch.manual_seed(0)
    check_fused(nn.Sequential(Sum(SUMS[spelling])).double()[0], maps(4, 2), ["add_upsample"])


def test_a_sum_larger_than_its_convolution_is_plain() -> None:
    model = Sum(torch.add).double()
    feature, mask = maps(4, 2)
    plain = copy.deepcopy(model)
    assert int(fuse(model)) == 1
    assert ops_of(model, feature, mask[:1]) == []
    torch.testing.assert_close(results(model, feature, mask[:1]), results(plain, feature, mask[:1]), **SAME)


# What is left. The name is "merge" if the search came as far as the merging convolution.


class Custom(nn.Conv2d):
    pass


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda *_: None)
    return module


def replaced(module: nn.Module) -> nn.Module:
    module.forward = module.forward  # type: ignore[method-assign]
    return module


def merge(**options: Any) -> Callable[[], Level]:
    return lambda: Level(merge=nn.Conv2d(5, 2, **{"kernel_size": 3, "padding": 1, **options}))


def up(**options: Any) -> Callable[[], Level]:
    return lambda: Level(up=lambda x: F.interpolate(x, **options))


class MergeUsed(Level):
    def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
        merged = F.relu(self.merge(torch.cat([self.skip(feature), mask], 1)))
        return F.interpolate(merged, scale_factor=2) + merged.mean()


class ConvUsed(Level):
    def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
        merged = self.merge(torch.cat([self.skip(feature), mask], 1))
        return F.interpolate(F.relu(merged), scale_factor=2) + merged.mean()


class CatUsed(Level):
    def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
        joined = torch.cat([self.skip(feature), mask], 1)
        return F.interpolate(F.relu(self.merge(joined)), scale_factor=2) + joined.mean()


class SumUsed(Sum):
    def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
        total = self.horizontal(feature) + self.vertical(mask)
        return F.interpolate(F.relu(total), scale_factor=2) + total.mean()


class SumOverwrites(Sum):
    def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
        total = feature[:, :3] * 1
        alias = total
        total += self.vertical(mask)
        return F.interpolate(F.relu(total), scale_factor=2) + alias.mean()


class Doubled(Sum):
    def __init__(self) -> None:
        super().__init__(torch.add)

    def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
        x = self.vertical(mask)
        return F.interpolate(F.relu(x + x), scale_factor=2)


class Three(Level):
    def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
        joined = torch.cat([self.skip(feature), mask[:, :1], mask[:, 1:]], 1)
        return F.interpolate(F.relu(self.merge(joined)), scale_factor=2)


class NoCat(Level):
    def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
        return F.interpolate(F.relu(self.skip(feature)), scale_factor=2) + mask.mean()


RELU_FIRST = "stands before the upsampling, not a ReLU"
CONV_FIRST = "stands before the ReLU, not a convolution or a sum"
MODES = "not 'bilinear' or 'nearest'"

LEFT: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "align_corners": (
        up(scale_factor=2, mode="bilinear", align_corners=True),
        "merge",
        "the upsampling has align_corners=True",
    ),
    "UpsamplingBilinear2d": (
        lambda: Level(up=nn.UpsamplingBilinear2d(scale_factor=2)),
        "merge",
        "the upsampling has align_corners=True",
    ),
    "antialias": (
        up(scale_factor=2, mode="bilinear", antialias=True),
        "merge",
        "the upsampling has antialias=True",
    ),
    "factor": (up(scale_factor=4), "merge", "the upsampling is by 4, not by 2"),
    "two factors": (up(scale_factor=(2, 1)), "merge", "the upsampling is by (2, 1), not by 2"),
    "size": (up(size=(10, 8)), "merge", "the upsampling is to a size, not by the factor 2"),
    "bicubic": (up(scale_factor=2, mode="bicubic"), "merge", f"the upsampling is 'bicubic', {MODES}"),
    "area": (up(scale_factor=2, mode="area"), "merge", f"the upsampling is 'area', {MODES}"),
    "hooked upsampling": (
        lambda: Level(up=hooked(nn.Upsample(scale_factor=2))),
        "merge",
        "'up' has hooks or a forward of its own",
    ),
    "transposed": (
        lambda: Level(up=nn.ConvTranspose2d(2, 2, 2, stride=2)),
        "merge",
        "ConvTranspose2d stands in place of the upsampling",
    ),
    "groups": (lambda: merge_of_six(groups=2), "merge", "'merge' has groups 2, not 1"),
    "dilation": (merge(dilation=2, padding=2), "merge", "'merge' has dilation (2, 2), not (1, 1)"),
    "stride": (merge(stride=2), "merge", "'merge' has stride (2, 2), not (1, 1)"),
    "5x5": (merge(kernel_size=5, padding=2), "merge", "'merge' has kernel_size (5, 5), not (3, 3)"),
    "1x1": (merge(kernel_size=1, padding=0), "merge", "'merge' has kernel_size (1, 1), not (3, 3)"),
    "no padding": (merge(padding=0), "merge", "'merge' has padding (0, 0), not 1"),
    "valid": (merge(padding="valid"), "merge", "'merge' has padding 'valid', not 1"),
    "reflect": (
        merge(padding_mode="reflect"),
        "merge",
        "'merge' has padding_mode 'reflect', not 'zeros' or 'replicate'",
    ),
    "circular": (
        merge(padding_mode="circular"),
        "merge",
        "'merge' has padding_mode 'circular', not 'zeros' or 'replicate'",
    ),
    "subclass": (lambda: Level(merge=Custom(5, 2, 3, padding=1)), "merge", "'merge' is a Custom, not a plain Conv2d"),
    "hooked merge": (
        lambda: Level(merge=hooked(nn.Conv2d(5, 2, 3, padding=1))),
        "merge",
        "'merge' has hooks or a forward of its own",
    ),
    "replaced forward": (
        lambda: Level(merge=replaced(nn.Conv2d(5, 2, 3, padding=1))),
        "merge",
        "'merge' has hooks or a forward of its own",
    ),
    "weight norm": (
        lambda: Level(merge=parametrizations.weight_norm(nn.Conv2d(5, 2, 3, padding=1))),
        "merge",
        "'merge' is parametrized",
    ),
    "spectral norm": (
        lambda: Level(merge=spectral_norm(nn.Conv2d(5, 2, 3, padding=1)).eval()),
        "merge",
        "'merge' has hooks or a forward of its own",
    ),
    "hooked ReLU": (lambda: Level(relu=hooked(nn.ReLU())), "", "'relu' has hooks or a forward of its own"),
    "norm": (
        lambda: Level(merge=nn.Sequential(nn.Conv2d(5, 2, 3, padding=1), nn.BatchNorm2d(2))),
        "",
        f"BatchNorm2d {CONV_FIRST}",
    ),
    "norm after ReLU": (
        lambda: Level(up=nn.Sequential(nn.BatchNorm2d(2), nn.Upsample(scale_factor=2))),
        "up.1",
        f"BatchNorm2d {RELU_FIRST}",
    ),
    "another activation": (lambda: Level(relu=nn.LeakyReLU()), "", f"LeakyReLU {RELU_FIRST}"),
    "hooked block": (
        lambda: Level(merge=hooked(nn.Sequential(nn.Conv2d(5, 2, 3, padding=1)))),
        "",
        f"Sequential with hooks {CONV_FIRST}",
    ),
    "merge used": (MergeUsed, "", "the upsampling's input is used elsewhere too"),
    "convolution used": (ConvUsed, "merge", "the convolution's result is used elsewhere too"),
    "concatenation used": (CatUsed, "merge", "the concatenation is used elsewhere too"),
    "sum used": (lambda: SumUsed(torch.add), "", "the sum is used elsewhere too"),
    "sum in place": (lambda: SumOverwrites(torch.add), "vertical", "the sum or its mask is changed in place"),
    "alpha": (
        lambda: Sum(lambda x, y: torch.add(x, y, alpha=2)),
        "",
        "the sum has alpha 2",
    ),
    "a sum without convolution": (
        lambda: Sum(lambda x, y: x + y.sigmoid()),
        "horizontal",
        "'horizontal' has kernel_size (1, 1), not (3, 3)",
    ),
    "a convolution twice": (Doubled, "", "the sum is of one convolution with itself"),
    "three": (Three, "merge", "the concatenation is of 3 tensors, not of 2"),
    "another dimension": (
        lambda: Level(
            cat=lambda skip, mask: torch.cat([skip, mask[:, :1].expand_as(skip)], 2),
            merge=nn.Conv2d(3, 2, 3, padding=1),
        ),
        "merge",
        "the concatenation is along dimension 2, not 1",
    ),
    "no concatenation": (NoCat, "skip", "an argument stands before the convolution, not a concatenation"),
}


def merge_of_six(**options: Any) -> Level:
    return Level(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(6, 2, 3, padding=1, **options))


@pytest.mark.parametrize("kind", LEFT)
def test_what_is_not_the_same_is_left(kind: str) -> None:
    torch.manual_seed(0)
    make, name, reason = LEFT[kind]
    check_left(make().eval(), maps(4, 2), {name: reason})


# What a trace does not record.


class DependsOnMode(Level):
    def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
        return super().forward(feature, F.dropout(mask, 0.5, self.training))


class DependsOnAutocast(Level):
    device = "cpu"

    def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
        return super().forward(feature, mask.float() if torch.is_autocast_enabled(self.device) else mask)


class DependsOnAutocastElsewhere(DependsOnAutocast):
    device = "xpu"  # a device type that no backend is for


class DependsOnGradients(Level):
    def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
        return super().forward(feature, mask * 2 if torch.is_grad_enabled() else mask)


class AsksForType(Level):
    def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
        return super().forward(*((feature, mask) if isinstance(feature, Tensor) else feature))


class AsksWhetherTensor(Level):
    def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
        return super().forward(*((feature, mask) if torch.is_tensor(feature) else feature))


class CallsOps(Level):
    def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
        return merge_upsample(self.skip(feature), mask, self.merge.weight, self.merge.bias)


class Branches(Level):
    def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
        return super().forward(feature, mask if mask.shape[0] > 1 else mask * 2)


class NoGrad(Level):
    def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
        with torch.no_grad():
            feature = feature * 2
        return super().forward(feature, mask)


class FullPrecision(Level):
    def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(feature, mask)


class Keeps(Level):
    calls = 0

    def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(feature, mask)


class Collects(Level):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
        self.seen.append(feature)
        return super().forward(feature, mask)


class MakesTensors(Level):
    def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
        return super().forward(feature + torch.ones(1, dtype=torch.float64), mask)


class Checkpoints(Level):
    def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
        return checkpoint(super().forward, feature, mask, use_reentrant=False)


class AnyArguments(Level):
    def forward(self, *maps: Tensor) -> Tensor:
        return super().forward(*maps)


class KeywordOnly(Level):
    def forward(self, feature: Tensor, *, mask: Tensor) -> Tensor:
        return super().forward(feature, mask)


def own_forward() -> Level:
    level = Level()
    level.forward = lambda *maps: Level.forward(level, *maps)  # type: ignore[method-assign]
    return level


UNTRACED: dict[Callable[[], nn.Module], str] = {
    DependsOnMode: "its forward depends on the training, gradient or autocast mode",
    DependsOnAutocast: "its forward depends on the training, gradient or autocast mode",
    DependsOnAutocastElsewhere: "its forward depends on the training, gradient or autocast mode",
    DependsOnGradients: "its forward depends on the training, gradient or autocast mode",
    AsksForType: "its forward asks for the type of a value",
    AsksWhetherTensor: "its forward asks for the type of a value",
    CallsOps: "its forward calls the ops itself",
    Branches: "its forward branches on a value",
    NoGrad: "its forward sets autocast or the gradient mode",
    FullPrecision: "its forward sets autocast or the gradient mode",
    Keeps: "its forward changes the module or makes tensors of its own",
    Collects: "its forward changes the module or makes tensors of its own",
    MakesTensors: "its forward changes the module or makes tensors of its own",
    Checkpoints: "its forward checkpoints activations",
    AnyArguments: "its forward takes *maps",
    KeywordOnly: "its forward takes 'mask' as keyword only",
    own_forward: "its forward was replaced on the object",
}


@pytest.mark.parametrize("make", UNTRACED)
def test_what_a_trace_cannot_say_is_left(make: Callable[[], nn.Module]) -> None:
    module = make()
    module.level = Level()  # it is fused, because only the module around it cannot be traced
    before = {name: value for name, value in vars(module).items() if name != "_modules"}
    seen = list(module.seen) if isinstance(module, Collects) else None
    report = fuse(module)
    assert report.swapped == ("level",)
    assert report.left == {"": f"cannot be traced: {UNTRACED[make]}"}
    assert {name: value for name, value in vars(module).items() if name != "_modules"} == before
    assert seen is None or module.seen == seen == []


def test_generated_modules_are_left() -> None:
    level = torch.fx.symbolic_trace(Level())
    assert fuse(level).left == {"": "cannot be traced: it is a GraphModule, whose class torch.fx generates itself"}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_scripted_parts_are_called_as_they_are() -> None:
    class Scripted(Level):
        def __init__(self) -> None:
            super().__init__()
            self.before = torch.jit.script(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()))

        def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
            return super().forward(self.before(feature), mask)

    model, inputs = Scripted().double(), maps(4, 2)
    expected = results(model, *inputs)
    assert int(fuse(model)) == 1
    assert ops_of(model, *inputs) == ["refine"]
    torch.testing.assert_close(results(model, *inputs), expected, **SAME)


def test_only_the_innermost_is_named() -> None:
    model = nn.ModuleDict({"a": Branches()})
    outer = Branches()
    outer.inner = nn.Sequential(model["a"], nn.Linear(2, 2))
    assert fuse(outer).left == {"inner.0": "cannot be traced: its forward branches on a value"}


def test_a_part_that_cannot_be_traced_is_called_as_it_is() -> None:
    class Whole(Level):
        def __init__(self) -> None:
            super().__init__()
            self.part = Branching()

        def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
            return super().forward(self.part(feature), mask)

    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.shape[0] > 1 else x * 2

    model = Whole().double()
    assert check_fused(model, maps(4, 2), ["refine"]).left == {}
    feature, mask = (m[:1] for m in maps(4, 2))
    torch.testing.assert_close(model(feature, mask), Whole.forward(model, feature, mask), **SAME)


# A fused module runs the user's own forward if the trace does not hold for the call.


def test_an_absent_tensor_takes_the_users_branch() -> None:
    block = Block(4, 3, 2).double()
    plain = copy.deepcopy(block)
    assert fuse(block).left == {}
    feature, mask = maps(4, 3)
    assert ops_of(block, feature, mask) == ["refine"]
    assert ops_of(block, feature) == []
    torch.testing.assert_close(block(feature), plain(feature), rtol=0, atol=0)
    torch.testing.assert_close(block(encoded=feature, coarse=None), plain(feature), rtol=0, atol=0)
    torch.testing.assert_close(block(feature, coarse=mask), plain(feature, mask), **SAME)


class WithLoss(Level):
    def forward(self, feature: Tensor, mask: Tensor, target: Tensor | None = None) -> Tensor:
        found = super().forward(feature, mask)
        return found if target is None else F.mse_loss(found, target)


def test_an_optional_tensor_is_fused_both_ways() -> None:
    level = WithLoss().double()
    plain = copy.deepcopy(level)
    assert len(fuse(level).swapped) == 1
    feature, mask, target = *maps(4, 2), *maps(2, size=(10, 8))
    for arguments in ((feature, mask), (feature, mask, target), (feature, mask, None)):
        assert ops_of(level, *arguments) == ["refine"]
        torch.testing.assert_close(level(*arguments), plain(*arguments), **SAME)


class Optional(Level):
    """None in place of a required tensor, an option that is not a tensor."""

    def forward(self, feature: Tensor, mask: Tensor | None, mode: str = "nearest") -> Tensor:  # type: ignore[override]
        if mask is None:
            mask = feature[:, :2]
        merged = F.relu(self.merge(torch.cat([F.relu(self.skip(feature)), mask], 1)))
        return F.interpolate(merged, scale_factor=2, mode=mode)


def test_other_arguments_take_the_users_way() -> None:
    level = Optional().double()
    plain = copy.deepcopy(level)
    fuse(level)
    feature, mask = maps(4, 2)
    cases: list[tuple[tuple[Any, ...], int]] = [
        ((feature, mask), 1),
        ((feature, mask, "nearest"), 1),
        ((feature, mask, "bicubic"), 0),
        ((feature, None), 1),
    ]
    for arguments, ops in cases:
        assert len(ops_of(level, *arguments)) == ops
        torch.testing.assert_close(level(*arguments), plain(*arguments), **SAME)
    for wrong in ((feature,), (feature, mask, "nearest", 1)):
        with pytest.raises(TypeError):
            level(*wrong)
    with pytest.raises(TypeError):
        level(feature, mask, other=1)


def pruned_and_loaded(level: Level) -> None:
    prune.random_unstructured(level.merge, "weight", 0.5)
    level.load_state_dict({name: x if "mask" in name else x + 1 for name, x in level.state_dict().items()})


CHANGES: dict[str, Callable[[Level], Any]] = {
    "hook": lambda level: level.merge.register_forward_hook(lambda _m, _i, out: out * 2),
    "weight norm": lambda level: parametrizations.weight_norm(level.skip),
    "spectral norm": lambda level: spectral_norm(level.merge).eval(),
    "another class": lambda level: setattr(level, "merge", Custom(5, 2, 3, padding=1).double()),
    "another form": lambda level: setattr(level, "merge", nn.Conv2d(5, 2, 3, padding=2, dilation=2).double()),
    "replaced forward": lambda level: setattr(level.relu, "forward", torch.sigmoid),
    "upsampling": lambda level: setattr(level.up, "mode", "bilinear"),
    "own option": lambda level: setattr(level, "gain", 3.0),
    "pruned and loaded": pruned_and_loaded,
}


@pytest.mark.parametrize("change", CHANGES)
def test_parts_changed_later_are_called_again(change: str) -> None:
    torch.manual_seed(0)
    level = Level(relu=nn.ReLU(), up=nn.Upsample(scale_factor=2)).double()
    inputs = maps(4, 2)
    fuse(level)
    assert ops_of(level, *inputs) == ["refine"]
    CHANGES[change](level)
    assert ops_of(level, *inputs) == []
    torch.testing.assert_close(level(*inputs), Level.forward(level, *inputs), rtol=0, atol=0)


def test_hooks_on_all_modules_run() -> None:
    model, seen = Level(relu=nn.ReLU()).double(), []
    inputs, plain = maps(4, 2), nn.ModuleList([Level(relu=nn.ReLU())])
    fuse(model)
    assert ops_of(model, *inputs) == ["refine"]
    with register_module_forward_hook(lambda module, _inputs, _out: seen.append(module)):
        assert ops_of(model, *inputs) == []
        torch.testing.assert_close(model(*inputs), Level.forward(model, *inputs), rtol=0, atol=0)
        report = fuse(plain)
    assert {model.skip, model.merge, model.relu} <= set(seen)
    assert report.left == {"0": "cannot be traced: hooks are registered for all modules"}
    assert int(fuse(plain)) == 1


def test_hooks_and_changes_of_the_port_that_come_later() -> None:
    port, inputs = Port().double(), [*maps(4), *maps(5, size=(10, 8)), *maps(2)]
    fuse(port)
    assert ops_of(port, *inputs) == ["add_upsample"] * 2
    with register_module_forward_pre_hook(lambda _module, _inputs: None):
        assert ops_of(port, *inputs) == []
    prune.random_unstructured(port.refs[0].layer2[-1], "weight", 0.5)
    port.load_state_dict({name: x if "mask" in name else x + 1 for name, x in port.state_dict().items()})
    plain = Port().double()
    prune.random_unstructured(plain.refs[0].layer2[-1], "weight", 0.5)
    plain.load_state_dict(port.state_dict())
    assert ops_of(port, *inputs) == ["add_upsample"]
    torch.testing.assert_close(port(*inputs), plain(*inputs))


def test_a_new_object_of_a_fused_class_is_plain() -> None:
    chain = nn.Sequential(nn.Sequential(nn.Conv2d(3, 2, 3, padding=1)), nn.ReLU(), nn.Upsample(scale_factor=2))

    class Cat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, x[:, :1]], 1)

    model = nn.Sequential(Cat(), *chain).double()
    (x,) = maps(2)
    expected = model[:2](x)
    check_fused(model, [x], ["merge_upsample"])
    torch.testing.assert_close(model[:2](x), expected, rtol=0, atol=0)


def test_hooks_of_other_parts_run_when_they_come_later() -> None:
    model, calls = their_model().eval(), []
    fuse(model)
    for part in (model.enc, model.enc.stages[1], model.dec, model.dec.across):
        part.register_forward_hook(lambda *_: calls.append(1))
    assert ops_of(model, *maps(3, **IMAGE)) == THEIR_OPS
    assert len(calls) == 4


def test_blocks_alike_share_their_code() -> None:
    model = nn.ModuleList([Level(), Level()])
    fuse(model)
    assert type(model[0]) is type(model[1]) is not Level


def test_our_own_module_is_left_alone() -> None:
    model = nn.Sequential(Refinement(4, 3, 2, 5))
    assert str(fuse(model)) == "swapped: 0\nleft: 0"


def test_refuses_what_is_no_module() -> None:
    with pytest.raises(TypeError, match=r"^model must be a torch.nn.Module, got dict$"):
        fuse({})  # type: ignore[arg-type]


def test_the_report_is_aligned() -> None:
    report = FuseReport(("a",), {"": "one", "decoder.long": "two"})
    assert str(report).splitlines() == [
        "swapped: 1",
        "  a",
        "left: 2",
        "  (the model itself)  one",
        "  decoder.long        two",
    ]


# Adapters.


class Odd(nn.Module):
    """Cannot be traced, because it branches on a value."""

    def __init__(self) -> None:
        super().__init__()
        self.merge = nn.Conv2d(5, 2, 3, padding=1)

    def forward(self, skip: Tensor, mask: Tensor) -> Tensor:
        if mask.sum() > 1e9:
            raise ValueError
        return F.interpolate(F.relu(self.merge(torch.cat([skip, mask], 1))), scale_factor=2)


class OddHeir(Odd):
    pass


def test_an_adapter_takes_its_class_alone() -> None:
    def forward(module: Odd, skip: Tensor, mask: Tensor) -> Tensor:
        return merge_upsample(skip, mask, module.merge.weight, module.merge.bias, upsample="nearest")

    register_adapter(Odd, forward)
    model = nn.ModuleDict({"odd": Odd(), "heir": OddHeir()}).double()
    plain = copy.deepcopy(model)
    report = fuse(model)
    assert report.swapped == ("odd",)
    assert list(report.left) == ["heir"]
    inputs = maps(3, 2)
    assert ops_of(model["odd"], *inputs) == ["merge_upsample"]
    torch.testing.assert_close(results(model["odd"], *inputs), results(plain["odd"], *inputs), **SAME)
    assert int(fuse(model)) == 0
    assert ops_of(copy.deepcopy(model)["odd"], *inputs) == ["merge_upsample"]


@pytest.mark.parametrize("kind", [int, "Odd"])
def test_an_adapter_needs_a_class_or_function(kind: Any) -> None:
    with pytest.raises(TypeError, match=r"^kind must be a subclass of torch\.nn\.Module or a function, got "):
        register_adapter(kind, lambda module: None)


def test_an_adapter_needs_a_forward() -> None:
    with pytest.raises(TypeError, match=r"^forward must be a function, got None$"):
        register_adapter(Odd, None)  # type: ignore[arg-type]


class RefineModule(nn.Module):
    """The form of the public PyTorch port: two nets, their sum, ReLU, nearest upsampling; padding by reflection."""

    def __init__(self, feature: int, mask: int) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(feature, 6, 3),
            nn.ReLU(inplace=True),
            nn.ReflectionPad2d(1),
            nn.Conv2d(6, 3, 3),
        )
        self.layer2 = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(mask, mask, 3),
            nn.ReLU(inplace=True),
            nn.ReflectionPad2d(1),
            nn.Conv2d(mask, 3, 3),
        )
        self.layer3 = nn.Sequential(nn.ReLU(inplace=True), nn.UpsamplingNearest2d(scale_factor=2))

    def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:
        return self.layer3(self.layer1(x[0]) + self.layer2(x[1]))


class Port(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.refs = nn.ModuleList([RefineModule(4, 2), RefineModule(5, 3)])

    def forward(self, deep: Tensor, shallow: Tensor, mask: Tensor) -> Tensor:
        return self.refs[1]((shallow, self.refs[0]((deep, mask))))


def test_the_public_port_is_known() -> None:
    inputs = [*maps(4), *maps(5, size=(10, 8)), *maps(2)]
    report = check_fused(Port().double(), inputs, ["add_upsample"] * 2)
    assert (report.swapped, report.left) == (("refs.0", "refs.1"), {})


def test_the_port_with_a_hook_inside_is_left() -> None:
    port = Port()
    hooked(port.refs[0].layer2[-1])
    assert fuse(port).swapped == ("refs.1",)

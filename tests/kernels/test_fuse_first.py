"""fuse finds what follows an upsampling: the concatenation and convolution of a decoder, or a sum."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharpmask_kernels.fuse import fuse, run
from tests.kernels.fusing import assert_near, check, ops_of, results

MERGE, ADD = "upsample_merge", "upsample_add"


def maps(*channels: int, size: tuple[int, int] = (3, 4), first: tuple[int, int] | None = None) -> list[Tensor]:
    """A small map, by default of half the size, and the others."""
    torch.manual_seed(7)
    sizes = [first or size, *[(2 * size[0], 2 * size[1])] * (len(channels) - 1)]
    return [
        torch.randn(2, c, *s, dtype=torch.float64, requires_grad=True) for c, s in zip(channels, sizes, strict=True)
    ]


class Block(nn.Module):
    """A decoder's block: upsample, concatenate, convolve, normalise, activate; each part can be another."""

    def __init__(self, **parts: Any) -> None:
        super().__init__()
        self.up = parts.pop("up", nn.Upsample(scale_factor=2))
        self.cat = parts.pop("cat", lambda x, skip: torch.cat([x, skip], 1))
        self.conv = parts.pop("conv", nn.Conv2d(3 + 2, 4, 3, padding=1))
        self.norm = parts.pop("norm", nn.Identity())
        self.act = parts.pop("act", nn.ReLU(inplace=True))
        assert not parts

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(self.cat(self.up(x), skip))))


class ToSkip(nn.Module):
    """Upsampling to the skip's size."""

    def __init__(self, size: Callable[[Tensor], Any], weigh: nn.Module | None = None, **options: Any) -> None:
        super().__init__()
        self.size, self.options, self.weigh = size, options, weigh
        self.conv = nn.Conv2d(3 + 2, 4, 3, padding=1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        up = F.interpolate(x, size=self.size(skip), **self.options)
        if self.weigh is not None:
            up = up * self.weigh(up)
        return F.relu(self.conv(torch.cat([up, skip], 1)))


class Attended(nn.Module):
    """A map upsampled, then multiplied by an attention that is computed from it."""

    def __init__(self, attention: Callable[[Tensor], Tensor], **options: Any) -> None:
        super().__init__()
        self.attention, self.options = attention, options

    def forward(self, x: Tensor) -> Tensor:
        up = F.interpolate(x, scale_factor=2, **self.options)
        return up * self.attention(up)


def squeeze() -> nn.Module:
    """The attention of squeeze-and-excitation: one weight for each channel."""
    layers = nn.Conv2d(3, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(2, 3, 1), nn.Sigmoid()
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), *layers)


def trained(norm: nn.Module) -> nn.Module:
    """The normalisation with values that are not those of a new one."""
    with torch.no_grad():
        for x in (*norm.parameters(), *norm.buffers()):
            if x.is_floating_point():
                x.uniform_(0.5, 1.5)
    return norm


SPELLINGS: dict[str, Callable[[], nn.Module]] = {
    "nn.Upsample": Block,
    "nearest, 2.0": lambda: Block(up=lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest")),
    "nearest-exact": lambda: Block(up=lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact")),
    "UpsamplingNearest2d": lambda: Block(up=nn.UpsamplingNearest2d(scale_factor=2)),
    "UpsamplingBilinear2d": lambda: Block(up=nn.UpsamplingBilinear2d(scale_factor=2)),
    "bilinear": lambda: Block(up=nn.Upsample(scale_factor=2, mode="bilinear")),
    "bilinear, corners": lambda: Block(up=nn.Upsample(scale_factor=(2.0, 2.0), mode="bilinear", align_corners=True)),
    "shape[2:]": lambda: ToSkip(lambda skip: skip.shape[2:]),
    "shape[-2:], bilinear": lambda: ToSkip(lambda skip: skip.shape[-2:], mode="bilinear", align_corners=True),
    "size()": lambda: ToSkip(lambda skip: skip.size()[2:], mode="bilinear", align_corners=False),
    "two sizes": lambda: ToSkip(lambda skip: (skip.shape[2], skip.size(3))),
    "skip first": lambda: Block(cat=lambda x, skip: torch.cat((skip, x), dim=1)),
    "no skip": lambda: Block(cat=lambda x, skip: x, conv=nn.Conv2d(3, 4, 3, padding=1)),
    "three, first": lambda: Block(cat=lambda x, skip: torch.cat([x, skip[:, :1], skip[:, 1:]], 1)),
    "three, between": lambda: Block(cat=lambda x, skip: torch.cat([skip[:, :1], x, skip[:, 1:]], 1)),
    "three, last": lambda: Block(cat=lambda x, skip: torch.cat([skip[:, :1], skip[:, 1:], x], 1)),
    "Identity between": lambda: Block(up=nn.Sequential(nn.Upsample(scale_factor=2), nn.Identity())),
    "Dropout after up": lambda: Block(up=nn.Sequential(nn.Upsample(scale_factor=2), nn.Dropout(0.3))),
    "Dropout after norm": lambda: Block(norm=nn.Sequential(trained(nn.BatchNorm2d(4)), nn.Dropout2d(0.3))),
    "attention": lambda: Block(up=Attended(squeeze())),
    "attention, bilinear": lambda: Block(up=Attended(squeeze(), mode="bilinear")),
    "attention of means": lambda: Block(up=Attended(lambda x: x.mean((2, 3), keepdim=True).sigmoid())),
    "attention, Dropout": lambda: Block(up=nn.Sequential(Attended(squeeze()), nn.Dropout(0.3))),
    "no bias": lambda: Block(conv=nn.Conv2d(5, 4, 3, padding=1, bias=False)),
    "same, replicate": lambda: Block(conv=nn.Conv2d(5, 4, 3, padding="same", padding_mode="replicate")),
    "reflect": lambda: Block(conv=nn.Conv2d(5, 4, 3, padding=1, padding_mode="reflect")),
    "ReflectionPad2d": lambda: Block(conv=nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(5, 4, 3))),
    "ReplicationPad2d": lambda: Block(conv=nn.Sequential(nn.ReplicationPad2d(1), nn.Conv2d(5, 4, 3))),
    "ZeroPad2d": lambda: Block(conv=nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(5, 4, 3))),
    "BatchNorm2d": lambda: Block(norm=trained(nn.BatchNorm2d(4)), conv=nn.Conv2d(5, 4, 3, padding=1, bias=False)),
    "BatchNorm2d, bias": lambda: Block(norm=trained(nn.BatchNorm2d(4, affine=False))),
    "BatchNorm2d of the batch": lambda: Block(norm=nn.BatchNorm2d(4, track_running_stats=False)),
    "GroupNorm": lambda: Block(norm=trained(nn.GroupNorm(2, 4))),
    "InstanceNorm2d": lambda: Block(norm=nn.InstanceNorm2d(4)),
    "ELU": lambda: Block(act=nn.ELU(inplace=True)),
    "ELU, alpha": lambda: Block(act=nn.ELU(0.5)),
    "LeakyReLU": lambda: Block(act=nn.LeakyReLU(inplace=True)),
    "LeakyReLU, slope": lambda: Block(act=nn.LeakyReLU(0.2)),
    "SiLU": lambda: Block(act=nn.SiLU()),
    "PReLU": lambda: Block(act=nn.PReLU()),
    "functional": lambda: Block(act=lambda x: F.elu(x)),
    "none": lambda: Block(act=nn.Identity()),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_one_upsample_merge(spelling: str) -> None:
    torch.manual_seed(0)
    report = check(SPELLINGS[spelling]().double(), maps(3, 2), [MERGE])
    assert report.left == {}


def test_attention_needs_no_upsampled_map(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Block(up=Attended(squeeze())).double()
    fuse(model)
    monkeypatch.setattr(run, "_upsampled", None)
    assert ops_of(model, *maps(3, 2)) == [MERGE]


class Lateral(nn.Module):
    """A level of a feature pyramid."""

    def __init__(self, add: Callable[[Tensor, Tensor], Tensor], up: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.lateral = nn.Conv2d(2, 3, 1)
        self.add, self.up = add, up

    def forward(self, top: Tensor, feature: Tensor) -> Tensor:
        lateral = self.lateral(feature)
        return self.add(lateral, self.up(top, lateral))


def twice(top: Tensor, lateral: Tensor) -> Tensor:
    return F.interpolate(top, scale_factor=2)


def add_assign(x: Tensor, y: Tensor) -> Tensor:
    x += y
    return x


SUMS: dict[str, Callable[[], Lateral]] = {
    "+": lambda: Lateral(lambda lateral, up: lateral + up, twice),
    "+, turned": lambda: Lateral(lambda lateral, up: up + lateral, twice),
    "+=": lambda: Lateral(lambda lateral, up: add_assign(up, lateral), twice),
    "torch.add, ReLU": lambda: Lateral(lambda lateral, up: torch.add(lateral, up).relu(), twice),
    "size": lambda: Lateral(torch.add, lambda top, lateral: F.interpolate(top, size=lateral.shape[-2:])),
    "a sum over a stack": lambda: Lateral(lambda lateral, up: torch.stack([up, lateral]).sum(dim=0), twice),
    "bilinear": lambda: Lateral(
        torch.add, lambda top, lateral: F.interpolate(top, lateral.shape[2:], mode="bilinear", align_corners=True)
    ),
}


@pytest.mark.parametrize("spelling", SUMS)
def test_every_sum_is_one_upsample_add(spelling: str) -> None:
    torch.manual_seed(0)
    assert check(SUMS[spelling]().double(), maps(3, 2), [ADD]).left == {}


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
def test_a_pointwise_convolution_comes_before_the_upsampling(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Block(cat=lambda x, skip: x, conv=nn.Conv2d(3, 4, 1), norm=trained(nn.BatchNorm2d(4))).double()
    model.up.mode = mode
    plain = copy.deepcopy(model)
    seen: list[torch.Size] = []
    report = fuse(model)
    assert report.swapped == (() if mode == "bicubic" else ("conv",))
    monkeypatch.setattr(nn.Conv2d, "forward", spied(nn.Conv2d.forward, seen))
    inputs = maps(3, 2)
    for training in (False, True):
        assert_near(results(model.train(training), *inputs), results(plain.train(training), *inputs), 1e-9)
    small, large = inputs[0].shape, torch.Size((2, 3, 6, 8))
    assert seen == [large if mode == "bicubic" else small, large] * 2


def spied(forward: Callable[..., Tensor], seen: list[torch.Size]) -> Callable[..., Tensor]:
    return lambda module, x: seen.append(x.shape) or forward(module, x)


def test_a_sum_over_a_stack_has_the_dtype_of_autocast() -> None:
    model = SUMS["a sum over a stack"]()
    plain = copy.deepcopy(model)
    fuse(model)
    inputs = [x.detach().bfloat16() for x in maps(3, 2)]
    with torch.autocast("cpu", torch.bfloat16):
        assert_near([model(*inputs)], [plain(*inputs)], 0.02)


# Sizes that do not double: the calls as they were written.


class Padded(nn.Module):
    """The upsampled map is padded to the skip's size."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.conv = nn.Sequential(nn.Conv2d(5, 4, 3, padding=1, bias=False), trained(nn.BatchNorm2d(4)), nn.ReLU(True))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(x)
        rows, columns = skip.size()[2] - x.size()[2], skip.size()[3] - x.size()[3]
        x = F.pad(x, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
        return self.conv(torch.cat([skip, x], dim=1))


OTHER_SIZES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "to the skip's size": (lambda: ToSkip(lambda skip: skip.shape[2:]), MERGE),
    "padded": (Padded, MERGE),
    "attention": (lambda: ToSkip(lambda skip: skip.shape[2:], weigh=squeeze()), MERGE),
    "a sum": (SUMS["size"], ADD),
    "a sum that broadcasts": (SUMS["+"], ADD),
}


@pytest.mark.parametrize("kind", OTHER_SIZES)
def test_sizes_that_do_not_double_take_the_original_calls(kind: str) -> None:
    torch.manual_seed(0)
    make, op = OTHER_SIZES[kind]
    model = make().double()
    plain = copy.deepcopy(model)
    check(model, maps(3, 2), [op])
    small, skip = maps(3, 2)
    others = [maps(3, 2, first=(4, 3)), maps(3, 2, first=(3, 3))]
    if kind == "a sum that broadcasts":
        others = [[small, skip[:1]], [small[:1], skip], [small, skip[:, :, :1]]]
    for inputs in others:
        if kind == "padded":
            inputs = [inputs[0][:, :, :3, :3], inputs[1][:, :, :, :7]]
        assert ops_of(model, *inputs) == []
        assert_near([model(*inputs)], [plain(*inputs)], 0)


# Normalisation in evaluation mode is folded into the weights.


def blocks() -> tuple[Block, Block, list[Tensor]]:
    torch.manual_seed(0)
    model = Block(norm=trained(nn.BatchNorm2d(4))).double().eval()
    plain = copy.deepcopy(model)
    assert int(fuse(model)) == 1
    return model, plain, maps(3, 2)


def other_state(model: nn.Module) -> dict[str, Tensor]:
    return {name: x + 0.25 if x.is_floating_point() else x for name, x in model.state_dict().items()}


CHANGES: dict[str, Callable[[Block], Any]] = {
    "weight in place": lambda m: m.conv.weight.mul_(2),
    "weight's .data": lambda m: m.conv.weight.data.mul_(2),
    "new weight": lambda m: setattr(m.conv, "weight", nn.Parameter(m.conv.weight * 2)),
    "bias": lambda m: m.conv.bias.add_(1),
    "gain": lambda m: m.norm.weight.mul_(2),
    "gain's .data, one value": lambda m: m.norm.weight.data[1].fill_(5),
    "offset": lambda m: m.norm.bias.add_(1),
    "mean": lambda m: m.norm.running_mean.add_(1),
    "variance": lambda m: m.norm.running_var.mul_(3),
    "variance's .data": lambda m: m.norm.running_var.data.mul_(3),
    "eps": lambda m: setattr(m.norm, "eps", 0.5),
    "a checkpoint": lambda m: m.load_state_dict(other_state(m)),
    "assigned": lambda m: m.load_state_dict(other_state(m), assign=True),
    "a training step": lambda m: (m.train()(*maps(3, 2)), m.eval()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_weights_is_seen(change: str) -> None:
    model, plain, inputs = blocks()
    with torch.no_grad():
        assert_near([model(*inputs)], [plain(*inputs)], 1e-9)
        for each in (model, plain):
            CHANGES[change](each)
        assert_near([model(*inputs)], [plain(*inputs)], 1e-9)
        assert ops_of(model, *inputs) == ([MERGE] if change != "eps" else [])


def test_folding_leaves_no_trace_in_the_module() -> None:
    model, plain, inputs = blocks()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with torch.inference_mode():
        model(*inputs)
    twin = copy.deepcopy(model)
    assert all(torch.equal(x, before[name]) for name, x in twin.state_dict().items())
    assert vars(model.conv).keys() == vars(plain.conv).keys()
    # What was folded in inference mode serves autograd: here the parameters need no gradient, the inputs do.
    assert_near(results(model.requires_grad_(False), *inputs), results(plain.requires_grad_(False), *inputs), 1e-9)


def test_only_the_normalisation_may_be_frozen() -> None:
    model, plain, inputs = blocks()
    for each in (model.train(), plain.train()):
        each.norm.eval()
    assert_near(results(model, *inputs), results(plain, *inputs), 1e-9)
    model.eval()
    model.norm.train()
    plain.eval()
    plain.norm.train()
    assert_near(results(model, *inputs), results(plain, *inputs), 1e-9)


# What is left.


class Used(Block):
    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        conv = self.conv(torch.cat([self.up(x), skip], 1))
        return F.relu(conv) + conv


class Changed(Block):
    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = x * 1
        up = self.up(x)
        x += 1
        return self.conv(torch.cat([up, skip], 1)) + x.mean()


class IntoLateral(Lateral):
    def __init__(self) -> None:
        super().__init__(add_assign, twice)

    def forward(self, top: Tensor, feature: Tensor) -> Tensor:
        lateral = feature[:, [0, 1, 0]] * 1
        alias = lateral
        return add_assign(lateral, self.up(top, lateral)) + alias.mean()


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda *_: None)
    return module


AFTER_UP = "stands after the upsampling, not a 3x3 convolution"
LEFT: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "5x5": (
        lambda: Block(conv=nn.Conv2d(5, 4, 5, padding=2)),
        "conv",
        "'conv' has kernel_size (5, 5), not (3, 3)",
    ),
    "groups": (
        lambda: Block(cat=lambda x, s: x, conv=nn.Conv2d(3, 3, 3, padding=1, groups=3)),
        "conv",
        "'conv' has groups 3, not 1",
    ),
    "reflection of bilinear": (
        lambda: Block(
            up=nn.Upsample(scale_factor=2, mode="bilinear"),
            conv=nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(5, 4, 3)),
        ),
        "conv.1",
        "the padding before 'conv.1' is by reflection, not zeros or replicated",
    ),
    "a product": (lambda: Block(up=lambda x: 2 * F.interpolate(x, scale_factor=2)), "", f"mul {AFTER_UP}"),
    "spatial attention": (
        lambda: Block(up=Attended(nn.Conv2d(3, 1, 7, padding=3))),
        "up",
        "an attention weighs the result of the upsampling; what fits is one weight per channel of the small map",
    ),
    "transposed": (
        lambda: Block(up=nn.ConvTranspose2d(3, 3, 2, stride=2)),
        "up",
        "ConvTranspose2d learns its own upsampling: only nn.Upsample or interpolate can be fused",
    ),
    "bicubic": (
        lambda: Block(up=nn.Upsample(scale_factor=2, mode="bicubic")),
        "up",
        "the upsampling is 'bicubic', not 'bilinear' or 'nearest'",
    ),
    "hooked": (
        lambda: Block(conv=hooked(nn.Conv2d(5, 4, 3, padding=1))),
        "up",
        "'conv' has hooks or a forward of its own",
    ),
    "changed": (Changed, "conv", "an input of 'conv' is changed in place"),
    "into the lateral": (IntoLateral, "", "the sum is written into a map that is used elsewhere too"),
}


@pytest.mark.parametrize("kind", LEFT)
def test_what_differs_is_left_and_said(kind: str) -> None:
    torch.manual_seed(0)
    make, name, reason = LEFT[kind]
    model = make().double()
    plain = copy.deepcopy(model)
    inputs = maps(3, 2)
    report = fuse(model)
    assert (report.swapped, report.left) == ((), {name: reason})
    assert type(model) is type(plain)
    assert_near([model(*inputs)], [plain(*inputs)], 0)


def test_what_follows_a_shared_convolution_stays() -> None:
    check(Used().double(), maps(3, 2), [MERGE])

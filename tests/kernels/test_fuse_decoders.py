"""fuse on whole decoders as people write them: a depth network's, a residual U-Net's, loops over lists of skips."""

from __future__ import annotations

import copy
import io
import pickle
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharpmask_kernels.fuse import fuse
from tests.kernels.fusing import assert_near, check, ops_of, results, tensors

MERGE, ADD = "upsample_merge", "upsample_add"


class Conv3x3(nn.Module):
    def __init__(self, ins: int, outs: int, reflect: bool) -> None:
        super().__init__()
        self.pad = nn.ReflectionPad2d(1) if reflect else nn.ZeroPad2d(1)
        self.conv = nn.Conv2d(ins, outs, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.pad(x))


class ConvBlock(nn.Module):
    def __init__(self, ins: int, outs: int, reflect: bool) -> None:
        super().__init__()
        self.conv = Conv3x3(ins, outs, reflect)
        self.nonlin = nn.ELU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.nonlin(self.conv(x))


def upsample(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


class DepthDecoder(nn.Module):
    """In the style of monodepth2: ELU, padding by reflection, layers in a dictionary, outputs kept on the module."""

    def __init__(self, encoder: tuple[int, ...], widths: tuple[int, ...], reflect: bool = True) -> None:
        super().__init__()
        self.levels = len(widths)
        self.convs: dict[tuple[str, int] | tuple[str, int, int], nn.Module] = OrderedDict()
        for i in reversed(range(self.levels)):
            ins = encoder[-1] if i == self.levels - 1 else widths[i + 1]
            self.convs["upconv", i, 0] = ConvBlock(ins, widths[i], reflect)
            skip = encoder[i - 1] if i > 0 else 0
            self.convs["upconv", i, 1] = ConvBlock(widths[i] + skip, widths[i], reflect)
            self.convs["dispconv", i] = Conv3x3(widths[i], 1, reflect)
        self.decoder = nn.ModuleList(self.convs.values())
        self.sigmoid = nn.Sigmoid()

    def forward(self, input_features: list[Tensor]) -> dict[tuple[str, int], Tensor]:
        self.outputs = {}
        x = input_features[-1]
        for i in range(self.levels - 1, -1, -1):
            x = self.convs["upconv", i, 0](x)
            x = [upsample(x)]
            if i > 0:
                x += [input_features[i - 1]]
            x = torch.cat(x, 1)
            x = self.convs["upconv", i, 1](x)
            self.outputs["disp", i] = self.sigmoid(self.convs["dispconv", i](x))
        return self.outputs


class Residual(nn.Module):
    """A residual block after the concatenation, with a shortcut of its own."""

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(ins, outs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outs)
        self.conv2 = nn.Conv2d(outs, outs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outs)
        self.shortcut = nn.Sequential(nn.Conv2d(ins, outs, 1, bias=False), nn.BatchNorm2d(outs))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.shortcut(x)
        return self.relu(out)


class ResUNet(nn.Module):
    """In the style of ResUNet: a loop over the skips, which come as a list."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.ups = nn.ModuleList(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True) for _ in widths[1:])
        self.blocks = nn.ModuleList(
            Residual(deep + shallow, shallow) for deep, shallow in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        *skips, x = features
        for up, block, skip in zip(self.ups, self.blocks, skips[::-1], strict=True):
            x = block(torch.cat([up(x), skip], dim=1))
        return x


class Pyramid(nn.Module):
    """A feature pyramid in one forward, over a list."""

    def __init__(self, widths: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(w, width, 1) for w in widths)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in widths)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        found = [conv(feature) for conv, feature in zip(self.lateral, features, strict=True)]
        for i in range(len(found) - 1, 0, -1):
            found[i - 1] = found[i - 1] + F.interpolate(found[i], size=found[i - 1].shape[2:], mode="nearest")
        return [conv(x) for conv, x in zip(self.smooth, found, strict=True)]


def features(*channels: int, size: tuple[int, int] = (16, 24), dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Maps of an encoder, each of half the size of the one before."""
    torch.manual_seed(5)
    height, width = size
    return [torch.randn(2, c, height >> i, width >> i, dtype=dtype).requires_grad_() for i, c in enumerate(channels)]


DECODERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[str]]] = {
    "depth": (lambda: DepthDecoder((4, 5, 6, 7), (3, 4, 5, 6)), (4, 5, 6, 7), [MERGE] * 4),
    "depth, zeros": (lambda: DepthDecoder((4, 5, 6, 7), (3, 4, 5, 6), False), (4, 5, 6, 7), [MERGE] * 4),
    "residual": (lambda: ResUNet((4, 5, 6, 7)), (4, 5, 6, 7), [MERGE] * 3),
    "pyramid": (lambda: Pyramid((4, 5, 6), 3), (4, 5, 6), [ADD] * 2),
}


def decoder(kind: str) -> tuple[nn.Module, list[Tensor], list[str]]:
    torch.manual_seed(1)
    make, channels, ops = DECODERS[kind]
    return make().double(), features(*channels), ops


@pytest.mark.parametrize("kind", DECODERS)
def test_a_decoder_gives_the_same_results(kind: str) -> None:
    model, inputs, ops = decoder(kind)
    report = check(model, [inputs], ops)
    assert len(report.swapped) >= len(ops)


@pytest.mark.parametrize("kind", DECODERS)
def test_another_number_of_maps_takes_the_users_way(kind: str) -> None:
    model, inputs, _ = decoder(kind)
    plain = copy.deepcopy(model)
    fuse(model)
    for wrong in (inputs[1:], tuple(inputs)):
        answers = []
        for each in (model.eval(), plain.eval()):
            try:
                answers.append(list(tensors(each(wrong))))
            except Exception as error:
                answers.append(type(error))
        if isinstance(answers[1], list):
            assert_near(answers[0], answers[1], 1e-9)
        else:
            assert answers[0] is answers[1]


def test_attributes_set_in_forward_are_set() -> None:
    model, inputs, _ = decoder("depth")
    fuse(model)
    assert not hasattr(model, "outputs")
    found = model(inputs)
    assert all(model.outputs[key] is x for key, x in found.items())
    assert list(found) == [("disp", i) for i in (3, 2, 1, 0)]


@pytest.mark.parametrize("kind", DECODERS)
def test_a_copy_and_a_checkpoint(kind: str) -> None:
    model, inputs, ops = decoder(kind)
    plain = copy.deepcopy(model).eval()
    fuse(model.eval())
    twin, loaded = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    assert sorted(ops_of(twin, inputs)) == sorted(ops)
    assert type(loaded) is type(plain)
    file = io.BytesIO()
    torch.save({name: x * 1.1 if x.is_floating_point() else x for name, x in plain.state_dict().items()}, file)
    file.seek(0)
    state = torch.load(file)
    for each in (model, plain, twin, loaded):
        each.load_state_dict(state, strict=True)
    for each in (model, twin, loaded):
        assert_near(results(each, inputs), results(plain, inputs), 1e-9)
    plain.load_state_dict(model.state_dict(), strict=True)


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("training", [False, True])
def test_a_decoder_compiles_as_one_graph(kind: str, training: bool) -> None:
    model, inputs, _ = decoder(kind)
    plain = copy.deepcopy(model).train(training)
    fuse(model.train(training))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_near(results(compiled, inputs), results(plain, inputs), 1e-9)
    torch.compiler.reset()


@pytest.mark.parametrize("kind", DECODERS)
def test_an_exported_decoder_holds_plain_operators(kind: str) -> None:
    model, inputs, _ = decoder(kind)
    plain = copy.deepcopy(model).eval()
    fuse(model.eval())
    inputs = [x.detach() for x in inputs]
    program = torch.export.export(model, (inputs,))
    assert not any("sharpmask" in str(node.target) for node in program.graph.nodes)
    assert_near(list(tensors(program.module()(inputs))), list(tensors(plain(inputs))), 1e-9)


def test_bfloat16_is_as_close_as_the_original() -> None:
    model, _, ops = decoder("residual")
    exact = copy.deepcopy(model).eval()
    rounded = model.to(torch.bfloat16).eval()
    plain = copy.deepcopy(rounded)
    fuse(rounded)
    inputs = features(4, 5, 6, 7, dtype=torch.bfloat16)
    assert ops_of(rounded, inputs) == ops
    exact.load_state_dict(plain.state_dict())
    expected = exact([x.double() for x in inputs])
    errors = [(each(inputs).double() - expected).abs().max().item() for each in (rounded, plain)]
    assert errors[0] <= 1.5 * errors[1], errors


def test_autocast_as_in_the_original() -> None:
    model, _, _ = decoder("residual")
    model = model.float().eval()
    plain = copy.deepcopy(model)
    fuse(model)
    inputs = features(4, 5, 6, 7, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = model(inputs), plain(inputs)
    assert_near([found], [expected], 0.03)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = F.interpolate(x, scale_factor=2)
        return self.conv(x)


def test_a_forward_that_no_trace_can_follow_is_named_in_plain_words() -> None:
    report = fuse(Branches())
    assert report.left == {"": "cannot be traced: its forward branches on a value"}

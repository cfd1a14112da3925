"""fuse on whole decoders as people write them: a depth network's, a residual U-Net's, loops over lists of skips.

The decoders of segmentation_models_pytorch are built narrow here; test_fuse_public has whole models.
"""

from __future__ import annotations

import copy
import io
import math
import pickle
import re
from collections.abc import Callable

import onnxruntime
import pytest
import segmentation_models_pytorch.decoders as smp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.models import DepthDecoder
from sharpmask_kernels.fuse import fuse
from tests.kernels.fusing import assert_near, check, ops_of, results, tensors

MERGE, ADD = "upsample_merge", "upsample_add"


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
    "smp Unet": (lambda: smp.unet.decoder.UnetDecoder((3, 4, 5, 6), (6, 5, 4), 3), (3, 4, 5, 6), [MERGE] * 3),
    "smp MAnet": (lambda: smp.manet.decoder.MAnetDecoder((3, 4, 5, 6), (6, 5, 4), 3), (3, 4, 5, 6), [MERGE] * 3),
    "smp FPN": (lambda: smp.fpn.decoder.FPNDecoder((4, 5, 6, 7), 3, 8, 32), (4, 5, 6, 7), [MERGE] * 3 + [ADD] * 4),
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
            assert isinstance(answers[0], type)  # an error, perhaps of another kind


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


@pytest.mark.parametrize("kind", ["depth", "pyramid", "smp Unet", "smp MAnet"])
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


@pytest.mark.parametrize("kind", ["depth", "smp Unet", "smp FPN"])
def test_onnx_holds_plain_operators_that_give_the_same_results(kind: str) -> None:
    model, inputs, _ = decoder(kind)
    model = model.float().eval().requires_grad_(False)
    inputs = [x.detach().float() for x in inputs]
    expected = [x.numpy() for x in tensors(copy.deepcopy(model)(inputs))]
    fuse(model)
    program = torch.onnx.export(model, (inputs,), dynamo=True, verbose=False)
    assert program is not None
    assert {node.domain for node in program.model_proto.graph.node} == {""}
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    names = [x.name for x in session.get_inputs()]
    found = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
    assert_near(list(map(torch.from_numpy, found)), list(map(torch.from_numpy, expected)), 1e-5)


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("size", [(32, 16), (20, 28)])
def test_other_sizes(kind: str, size: tuple[int, int]) -> None:
    """The second halves to maps of odd sizes, which do not double."""
    model, inputs, _ = decoder(kind)
    inputs = features(*(x.shape[1] for x in inputs), size=size)
    plain = copy.deepcopy(model).eval()
    fuse(model.eval())
    try:
        expected = results(plain, inputs)
    except RuntimeError as error:
        with pytest.raises(RuntimeError, match=re.escape(str(error))):
            model(inputs)
    else:
        assert_near(results(model, inputs), expected, 1e-9)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ["depth", "residual", "smp Unet", "smp MAnet", "smp FPN"])
def test_bfloat16_is_as_close_as_the_original(kind: str, training: bool) -> None:
    """Outputs and gradients, with parameters in bfloat16 and under autocast."""
    exact, inputs, ops = decoder(kind)
    without_dropout(exact).train(training)
    rounded = copy.deepcopy(exact).bfloat16()
    exact.load_state_dict(rounded.state_dict())
    given = [x.detach().bfloat16() for x in inputs]
    expected = results(exact, [x.double().requires_grad_() for x in given])
    for autocast in (False, True):
        dtype = torch.float32 if autocast else torch.bfloat16
        errors = []
        for fused in (True, False):
            model = copy.deepcopy(rounded).to(dtype)
            if fused:
                fuse(model)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                found = results(model, [x.to(dtype).requires_grad_() for x in given])
                assert not fused or sorted(ops_of(model, given)) == sorted(ops)
            errors.append(math.fsum(map(relative_error, found, expected)))
        assert errors[0] <= 1.3 * errors[1], (autocast, errors)


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    return model


def relative_error(found: Tensor, expected: Tensor) -> float:
    difference = torch.linalg.vector_norm(found.detach().double() - expected.detach())
    return float(difference / torch.linalg.vector_norm(expected.detach().double()).clamp(min=1e-3))


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

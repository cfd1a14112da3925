"""Engines: the same proposals as PyTorch's, in fp32; graphs that are kept on disk; what is refused."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from openvino import Model as OpenVinoModel
from openvino import opset13
from safetensors import SafetensorError
from torch import Tensor, nn

from sharpmask.checkpoint import load_model
from sharpmask.cli import main
from sharpmask.errors import DataError
from sharpmask.models import SharpMask, build_model
from sharpmask.models.config import SearchConfig
from sharpmask.search import MaskPredictor, ProposalGenerator
from sharpmask.search.engines import cache, calibration, form_of, graph, openvino
from sharpmask.search.engines.core import core
from sharpmask.search.maps import Stopwatch
from sharpmask_kernels import Windows

SIZES = [(96, 128), (75, 131), (1, 60)]


@pytest.fixture(autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where graphs are kept, empty."""
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SHARPMASK_CACHE", str(path))
    return path


@pytest.fixture
def model(tiny_sharpmask: SharpMask) -> SharpMask:
    """The tiny model, which no other test has compiled."""
    return copy.deepcopy(tiny_sharpmask)


@pytest.fixture
def photo(synth: Path) -> Path:
    return synth / "images" / "000002.png"


def random_image(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


def searched(generator: ProposalGenerator, image: np.ndarray) -> tuple[Windows, Tensor]:
    """The best windows, in order, and their mask logits."""
    watch = Stopwatch(torch.device("cpu"))
    with torch.inference_mode():
        maps = generator.look(image, watch, generator._best)
        windows = generator._best(maps)
        return windows, generator.window_logits(maps, windows, watch)


def resnet() -> SharpMask:
    """A ResNet-50 SharpMask with random weights, its maps as large as a trained one's."""
    torch.manual_seed(0)
    built = build_model("sharpmask", trunk="resnet50").eval()
    assert isinstance(built, SharpMask)
    with torch.no_grad():
        for name, module in built.trunk.named_modules():
            if name.endswith("bn3"):  # the last of a block, whose sum would grow from block to block
                module.weight.fill_(0.2)
    return built


@pytest.mark.parametrize("name", ["shipped", "resnet50"])
def test_proposals_are_those_of_pytorch(name: str) -> None:
    model = load_model() if name == "shipped" else resnet()
    search = replace(model.search, scales=(0.5, 1.0, 1.4142))
    plain = ProposalGenerator(model, top_n=40, search=search)
    fast = ProposalGenerator(model, top_n=40, search=search, engine="openvino")
    for size in SIZES:
        (windows, logits), (others, same) = (searched(g, random_image(size)) for g in (plain, fast))
        assert len(windows.score)
        for field in ("scale", "row", "col"):
            assert torch.equal(getattr(windows, field), getattr(others, field)), (size, field)
        torch.testing.assert_close(others.score, windows.score, rtol=0, atol=1e-4)
        torch.testing.assert_close(same, logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("options", [{"trunk": "resnet18", "trunk_padding": "reflect"}, {"trunk": "vgg11"}])
def test_other_models_have_the_same_maps(options: dict[str, str]) -> None:
    torch.manual_seed(0)
    model = build_model("deepmask", window=48, features=8, code=24, mask_side=12, score_hidden=40, **options).eval()  # type: ignore[arg-type]
    for size in SIZES:
        picture = torch.rand(1, 3, *size)
        with torch.inference_mode():
            plain, fast = model.for_inference()(picture), form_of(model, "openvino", "fp32")(picture)
        for a, b in zip((plain.score, plain.codes, *plain.taps), (fast.score, fast.codes, *fast.taps), strict=True):
            torch.testing.assert_close(b, a, rtol=0, atol=2e-5 * max(1.0, float(a.abs().max())))


def test_prompts_growth_and_coarse_masks(model: SharpMask, photo: Path) -> None:
    plain, fast = (ProposalGenerator(model, top_n=10, engine=engine) for engine in ("torch", "openvino"))
    for search in (
        lambda g: g.generate(photo),
        lambda g: g.at_points(photo, [(40, 50), (100, 90)]),
        lambda g: g.in_boxes(photo, [(20, 30, 40, 40)], clip=True),
        lambda g: replace(g, refine=False).generate(photo),
    ):
        a, b = search(plain), search(fast)
        np.testing.assert_allclose(b.scores, a.scores, atol=1e-5)
        assert (a.masks() == b.masks()).mean() > 0.9999  # a logit may lie at the threshold
    answers = []
    for engine in ("torch", "openvino"):
        predictor = MaskPredictor(model, engine=engine)
        predictor.set_image(photo)
        answers.append(predictor.predict([(40, 50), (100, 90)], [1, 0]))
    assert (answers[0][0] == answers[1][0]).mean() > 0.9999
    np.testing.assert_allclose(answers[1][1], answers[0][1], atol=1e-5)
    for a, b in zip(plain.grow(photo)[1], fast.grow(photo)[1], strict=True):
        np.testing.assert_allclose(b, a, atol=1e-3)


def test_maps_outlive_the_next_picture(model: SharpMask) -> None:
    form = form_of(model, "openvino", "fp32")
    with torch.inference_mode():
        first = form(torch.rand(1, 3, 64, 80))
        kept = [tap.clone() for tap in first.taps]
        form(torch.zeros(1, 3, 64, 80))
    assert all(map(torch.equal, first.taps, kept))


def test_a_changed_model_gets_another_form(model: SharpMask) -> None:
    picture = torch.rand(1, 3, 64, 80)
    before = form_of(model, "openvino", "fp32")
    assert form_of(model, "openvino", "fp32") is before
    with torch.no_grad():
        next(model.trunk.parameters()).mul_(2)
    after = form_of(model, "openvino", "fp32")
    with torch.inference_mode():
        torch.testing.assert_close(after(picture).score, model.for_inference()(picture).score, rtol=0, atol=1e-4)
        assert not torch.allclose(before(picture).score, after(picture).score, atol=1e-3)


def test_a_model_made_double_is_refused(model: SharpMask) -> None:
    generator = ProposalGenerator(model, engine="openvino")
    model.double()
    with pytest.raises(DataError, match=r"dtype torch\.float32 for engine openvino, got torch\.float64"):
        generator.generate(random_image((64, 80)))


def test_threads_are_those_of_pytorch(model: SharpMask) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            compiled = form_of(model, "openvino", "fp32").request.get_compiled_model()  # type: ignore[attr-defined]
            assert compiled.get_property("INFERENCE_NUM_THREADS") == threads
            assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
    finally:
        torch.set_num_threads(before)


def test_graphs_are_kept(model: SharpMask, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = torch.rand(1, 3, 64, 80)
    with torch.inference_mode():
        first = form_of(model, "openvino", "fp32")(picture)
        monkeypatch.setattr(graph, "converted", None)  # no graph can be made any more
        again = form_of(copy.deepcopy(model), "openvino", "fp32")(picture)
    (path,) = folder.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert torch.equal(first.score, again.score)


class Graphs:
    """Makes small graphs, and counts them."""

    def __init__(self, model: SharpMask) -> None:
        self.model, self.made = model, 0

    def make(self) -> Any:
        self.made += 1
        x = opset13.parameter([1, -1], np.float32)
        return OpenVinoModel([opset13.add(x, np.full(64, 3, np.float32))], [x])

    def get(self, name: str = "a") -> float:
        """What the graph kept under a name adds."""
        request = core().compile_model(cache.kept(self.model, name, self.make), "CPU").create_infer_request()
        return float(request.infer({0: np.zeros((1, 64), np.float32)})[0][0, 0])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "cut off": lambda path, other: path.write_bytes(path.read_bytes()[:1000]),
    "empty": lambda path, other: path.write_bytes(b""),
    "no graph": lambda path, other: path.write_bytes(b"\x80\x04cos\nsystem\n" * 100),
    "a bit": lambda path, other: flip(path),
    "another graph": lambda path, other: other.replace(path),
    "writable by all": lambda path, other: path.chmod(0o666),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_and_foreign_graphs_are_made_anew(
    model: SharpMask, folder: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    graphs = Graphs(model)
    assert graphs.get() == 3
    (path,) = folder.iterdir()
    assert graphs.get("b") == 3
    (other,) = set(folder.iterdir()) - {path}
    DAMAGE[name](path, other)
    assert graphs.get() == 3 and graphs.made == 3
    assert "made anew" in caplog.text and path.stat().st_mode & 0o777 == 0o600
    assert graphs.get() == 3 and graphs.made == 3


def test_a_folder_that_cannot_be_written_is_told(
    model: SharpMask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SHARPMASK_CACHE", str(tmp_path / "file" / "cache"))
    assert Graphs(model).get() == 3
    assert "cannot be kept" in caplog.text and "damaged" not in caplog.text


@pytest.mark.parametrize("error", [SafetensorError("I/O error"), RuntimeError("iostream error")])
def test_a_full_disk_is_told(
    model: SharpMask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(cache, "save_file", fail)
    assert Graphs(model).get() == 3
    assert f"the graph cannot be kept: {error}" in caplog.text


def test_what_hooks_compute_is_not_kept(model: SharpMask, folder: Path) -> None:
    model.trunk.register_forward_hook(lambda module, args, out: [2 * x for x in out])
    picture = torch.rand(1, 3, 64, 80)
    with torch.inference_mode():
        plain, fast = model.for_inference()(picture), form_of(model, "openvino", "fp32")(picture)
    torch.testing.assert_close(fast.taps[0], plain.taps[0], rtol=0, atol=1e-4)
    assert not list(folder.iterdir())


def test_keys_tell_models_apart(model: SharpMask) -> None:
    first = cache.key_of(model, "a")
    assert first == cache.key_of(copy.deepcopy(model), "a") != cache.key_of(model, "b")
    with torch.no_grad():
        model.std.add_(0.1)
    assert first != cache.key_of(model, "a")


def test_int8_by_own_photos(model: SharpMask, photo: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "has_vnni", lambda: True)
    torch.manual_seed(0)
    with torch.no_grad():
        for module in model.trunk.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                module.bias.normal_(0, 0.1)
    generator = ProposalGenerator(model, 10, engine="openvino", precision="int8", calibration=photo.parent)
    picture = torch.rand(1, 3, 61, 83)
    with torch.inference_mode():
        quantized, plain = generator.form(picture), model.for_inference()(picture)
    for a, b in zip(quantized.taps[2:], plain.taps[2:], strict=True):
        assert 1e-3 < (a - b).norm() / b.norm() < 0.5
    assert quantized.score.shape == plain.score.shape and quantized.codes.shape == plain.codes.shape
    assert len(generator.generate(photo))
    assert len(list(folder.iterdir())) == 1
    monkeypatch.setattr(calibration, "quantized", None)
    form_of(copy.deepcopy(model), "openvino", "int8", calibration=photo.parent)


def test_a_quantized_graph_of_other_maps_is_refused() -> None:
    x = opset13.parameter([1, -1], np.float32)
    plain, close, zeros = (OpenVinoModel([opset13.multiply(x, np.float32(f))], [x]) for f in (3, 2, 0))
    ones = np.ones((1, 5), np.float32)
    calibration.check_maps(plain, close, ones)
    with pytest.raises(DataError, match="got int8, in which its maps are 100% off"):
        calibration.check_maps(plain, zeros, ones)


def test_photos_for_int8(synth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "MOST", 4)
    assert len(calibration.photos_in(synth / "images")) == 3  # of six, every other
    assert calibration.photos_in(None) == [calibration.OWN] and calibration.OWN.exists()
    with pytest.raises(DataError, match="no image file"):
        calibration.photos_in(tmp_path)


def refusal(model: nn.Module, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        ProposalGenerator(model, **options)  # type: ignore[arg-type]
    return str(caught.value)


def test_refusals(model: SharpMask, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "with engine torch, got int8; int8 needs engine openvino" in refusal(model, precision="int8")
    assert "engine must be one of 'torch', 'compile', 'openvino'" in refusal(model, engine="tensorrt")
    assert "calibration must" in refusal(model, engine="openvino", calibration="photos")
    assert "which does not exist" in refusal(model, engine="openvino", precision="int8", calibration="missing")
    fast = {"engine": "openvino"}
    monkeypatch.setattr(openvino, "has_vnni", lambda: False)
    assert "no VNNI" in refusal(model, precision="int8", **fast)
    monkeypatch.setattr(openvino, "capabilities", lambda: ["FP32", "INT8"])
    assert "neither AMX nor AVX512-BF16" in refusal(model, precision="bf16", **fast)
    monkeypatch.setattr(openvino, "capabilities", lambda: ["FP32", "BF16"])
    ProposalGenerator(model, precision="bf16", **fast)  # type: ignore[arg-type]
    assert "float32" in refusal(copy.deepcopy(model).half(), **fast)
    assert "device must be cpu for engine openvino, got meta" in refusal(copy.deepcopy(model).to("meta"), **fast)
    monkeypatch.setattr(openvino, "find_spec", lambda name: None)
    assert "pip install 'sharpmask[openvino]'" in refusal(model, **fast)


def test_capabilities_are_asked_of_openvino() -> None:
    assert "FP32" in openvino.capabilities()
    assert openvino.has_vnni() in (True, False)


def test_the_command_line(
    photo: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def propose(name: str, *options: str) -> int:
        words = ["propose", str(photo), "--checkpoint", str(tiny_checkpoint), "--out", str(tmp_path / name), *options]
        return main([*words, "--top-n", "5", "--no-overlay"])

    assert propose("a") == propose("b", "--engine", "openvino") == 0
    a, b = ((tmp_path / name / "proposals.json").read_text().count("score") for name in "ab")
    assert a == b == 5
    capsys.readouterr()
    monkeypatch.setattr(openvino, "has_vnni", lambda: True)
    (tmp_path / "empty").mkdir()
    assert propose("c", "--engine", "openvino", "--precision", "int8", "--calibrate", str(tmp_path / "empty")) == 2
    assert capsys.readouterr().err == f"sharpmask: {tmp_path / 'empty'}: no image file in this folder\n"
    monkeypatch.setattr(openvino, "has_vnni", lambda: False)
    for status, options, said in (
        (2, ("--precision", "int8"), "with engine torch, got int8"),
        (2, ("--engine", "openvino", "--precision", "int8"), "no VNNI"),
        (2, ("--engine", "openvino", "--calibrate", str(photo)), "calibration must"),
    ):
        assert propose("c", *options) == status
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1


def test_searches_have_scales_of_their_own(model: SharpMask) -> None:
    """The same compiled graph serves every search."""
    form = form_of(model, "openvino", "fp32")
    generator = ProposalGenerator(model, engine="openvino", search=SearchConfig(scales=(0.3, 0.9)))
    assert generator.form is form


def test_there_is_one_core() -> None:
    """Of several, one that ends may take along the stack on which this process handles signals."""
    assert core() is core()
    root = Path(__file__).parents[2]
    files = [file for folder in ("sharpmask", "bench", "tests", "examples") for file in (root / folder).rglob("*.py")]
    makers = [file.relative_to(root).as_posix() for file in files if re.search(r"\bCore\(\)", file.read_text())]
    assert makers == ["sharpmask/search/engines/core.py"]

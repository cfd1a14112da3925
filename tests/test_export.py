"""Exported graphs give what the model gives, for sizes that they were not exported with."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sharpmask.checkpoint import load_model, save_model
from sharpmask.cli import main
from sharpmask.engines import ExportFormat
from sharpmask.errors import DataError
from sharpmask.export import export, formats
from sharpmask.geometry import GREY
from sharpmask.models import DeepMask, ModelConfig, SharpMask, build_model, from_config
from sharpmask.search.engines.core import core
from sharpmask_kernels import Windows, topk_windows

SIZES = [(96, 128), (75, 131), (1, 60)]
Run = Callable[[Sequence[Tensor]], list[Tensor]]


def in_onnxruntime(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]
    return lambda inputs: [
        torch.from_numpy(x) for x in session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})
    ]


def in_openvino(path: Path) -> Run:
    compiled = core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda inputs: [torch.from_numpy(x.copy()) for x in compiled([x.numpy() for x in inputs]).values()]


def in_torch(path: Path) -> Run:
    return listed(torch.export.load(path).module())


def in_aoti(path: Path) -> Run:
    return listed(torch._inductor.aoti_load_package(str(path)))


def listed(module: Callable[..., Tensor | Sequence[Tensor]]) -> Run:
    """A graph of one output returns it alone."""

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        found = module(*inputs)
        return [found] if isinstance(found, Tensor) else list(found)

    return run


READERS: dict[ExportFormat, tuple[str, Callable[[Path], Run]]] = {
    "onnx": (".onnx", in_onnxruntime),
    "openvino": (".xml", in_openvino),
    "torch": (".pt2", in_torch),
    "aoti": (".aoti.pt2", in_aoti),
}


def expected(model: DeepMask, picture: Tensor, count: int) -> tuple[Tensor, Windows, Tensor]:
    """The scores, the best windows and their logits, of the plain model."""
    maps = model.dense(F.pad(picture, (model.window // 2,) * 4, value=GREY))
    windows = topk_windows([maps.score], count)
    code = maps.code[0, :, windows.row, windows.col].T
    if isinstance(model, SharpMask):
        return maps.score, windows, model.refine_dense(maps.taps, code, windows)
    coarse = model.coarse(code)[:, None]
    return maps.score, windows, F.interpolate(coarse, (model.window,) * 2, mode="bilinear")[:, 0]


@torch.no_grad()
def check(model: DeepMask, folder: Path, *formats: ExportFormat) -> None:
    """Export ``model`` and compare what the graphs give."""
    assert export(model, folder, formats)[-1].name == "model.json"
    pictures = [torch.rand(1, 3, *size) for size in SIZES]
    wanted = [expected(model, picture, count) for picture, count in zip(pictures, (5, 1, 2), strict=True)]
    for name in formats:
        suffix, reader = READERS[name]
        bottom_up, window_masks = (reader(folder / f"{graph}{suffix}") for graph in ("bottom_up", "window_masks"))
        for picture, (score, windows, logits) in zip(pictures, wanted, strict=True):
            codes, found, *horizontals = bottom_up([picture])
            torch.testing.assert_close(found, score, rtol=1e-4, atol=1e-4)
            (masks,) = window_masks([codes, windows.row, windows.col, *horizontals])
            torch.testing.assert_close(masks, logits, rtol=1e-4, atol=1e-4 * max(1.0, float(logits.abs().max())))


def test_the_model_that_the_package_brings(tmp_path: Path) -> None:
    check(load_model("small"), tmp_path, "onnx", "openvino", "torch")
    about = json.loads((tmp_path / "model.json").read_text())
    for name in ("bottom_up.pt2", "window_masks.pt2"):
        program = torch.export.load(tmp_path / name)
        assert all(node.users for node in program.graph.nodes if node.op == "placeholder")
    held = sum(path.stat().st_size for path in tmp_path.glob("*.pt2"))
    assert held < 1.1 * sum(tensor.nbytes for tensor in load_model("small").state_dict().values())
    assert about["window"] == 112 and about["horizontals"] == [f"horizontal_{stride}" for stride in (16, 8, 4, 2)]


def test_a_resnet(tiny_sharpmask: SharpMask, tmp_path: Path) -> None:
    check(tiny_sharpmask, tmp_path, "onnx")


def test_a_deepmask(tiny: ModelConfig, tmp_path: Path) -> None:
    check(from_config(replace(tiny, architecture="deepmask")).eval(), tmp_path, "torch")


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"trunk": "resnet50"}, {"architecture": "deepmask-original"}])
def test_other_models(options: dict[str, str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    check(build_model(**{"architecture": "sharpmask", **options}).eval(), tmp_path, "onnx", "openvino")  # type: ignore[arg-type]


@pytest.mark.slow
def test_compiled_ahead_of_time(tmp_path: Path) -> None:
    check(load_model("small"), tmp_path, "aoti")


def test_the_command_and_what_it_refuses(
    tiny_sharpmask: SharpMask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tiny_sharpmask, tmp_path / "model.safetensors")
    out = tmp_path / "out"
    assert main(["export", str(tmp_path / "model.safetensors"), str(out), "--to", "torch"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["bottom_up.pt2", "model.json", "window_masks.pt2"]
    assert "model.json" in capsys.readouterr().out
    assert main(["export", str(tmp_path / "none.safetensors"), str(out)]) != 0
    assert "no file" in capsys.readouterr().err
    with pytest.raises(DataError, match="to must be of onnx, openvino, torch, aoti, got 'tflite'"):
        export(tiny_sharpmask, out, "tflite")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="to must name a format of onnx, openvino, torch, aoti, got none"):
        export(tiny_sharpmask, out, [])
    with pytest.raises(DataError, match=r"torch\.float32 to be exported, got cpu, torch\.float64"):
        export(copy.deepcopy(tiny_sharpmask).double(), out, "torch")


def test_a_folder_holds_one_model(tiny: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In several formats, whose writers do nothing here."""
    monkeypatch.setattr("torch.export.export", lambda *_, **__: None)
    monkeypatch.setattr(formats, "_drop_unused", lambda _: None)
    none = {name: writer._replace(write=lambda *a: a[2].touch()) for name, writer in formats.WRITERS.items()}
    monkeypatch.setattr(formats, "WRITERS", none)
    torch.manual_seed(0)
    one, other = (from_config(replace(tiny, architecture="deepmask")).eval() for _ in range(2))
    export(one, tmp_path, "torch")
    about = (tmp_path / "model.json").read_bytes()
    export(one, tmp_path, "aoti")
    assert (tmp_path / "model.json").read_bytes() == about
    assert {path.name for path in tmp_path.iterdir()} >= {"bottom_up.pt2", "bottom_up.aoti.pt2"}
    with pytest.raises(DataError, match=r"graphs of this model only, got bottom_up.aoti.pt2 of another"):
        export(other, tmp_path, "torch")
    assert (tmp_path / "model.json").read_bytes() == about
    export(other, tmp_path, ["torch", "aoti"])
    assert (tmp_path / "model.json").read_bytes() != about


def test_a_missing_package_is_named(tiny_sharpmask: SharpMask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sharpmask.packages.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"needs the package onnx, .* pip install 'sharpmask\[onnx\]'"):
        export(tiny_sharpmask, tmp_path)
    assert not list(tmp_path.iterdir())

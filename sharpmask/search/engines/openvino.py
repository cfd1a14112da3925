"""The bottom-up pass by OpenVINO, which computes trunk and heads as one graph for pictures of any size."""

from __future__ import annotations

import threading
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ...engines import Precision
from ...errors import DataError
from ...models import DeepMask
from ...models.inference import InferenceForm, InferenceMaps
from . import cache, calibration, graph
from .core import core

if TYPE_CHECKING:
    import openvino

INSTALL: Final = "pip install 'sharpmask[openvino]'"
HINTS: Final[dict[Precision, str]] = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
"""The precision of what is not quantized. Without a hint, OpenVINO takes bf16 where the CPU has it."""

_Key = tuple[Precision, Path | None, graph.Contents, int]
_forms: WeakKeyDictionary[InferenceForm, dict[_Key, OpenVinoForm]] = WeakKeyDictionary()
_compiling = threading.Lock()


def check(model: DeepMask, precision: Precision) -> None:
    """Raise ``DataError`` if OpenVINO is missing, or cannot run the model on this machine in this precision."""
    for package in ("openvino", *(["nncf"] if precision == "int8" else [])):
        if find_spec(package) is None:
            raise DataError(f"engine openvino needs the package {package}, which is not installed: {INSTALL}")
    check_model(model)
    if precision == "bf16" and "BF16" not in capabilities():
        raise DataError("precision must be fp32 or int8 on this CPU, got bf16; it has neither AMX nor AVX512-BF16")
    if precision == "int8" and not has_vnni():
        raise DataError("precision must be fp32 on this CPU, got int8; it has no VNNI, so int8 would be no faster")


def check_model(model: DeepMask) -> None:
    """Raise ``DataError`` unless the model is one of the CPU, in fp32."""
    if model.mean.device.type != "cpu":
        raise DataError(f"device must be cpu for engine openvino, got {model.mean.device}")
    if (dtype := next(model.parameters()).dtype) != torch.float32:
        raise DataError(f"model must be of dtype torch.float32 for engine openvino, got {dtype}")


def capabilities() -> list[str]:
    """What OpenVINO says that the CPU computes faster than by default."""
    return list(core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def has_vnni() -> bool:
    """Whether the CPU multiplies int8 four times as fast as fp32."""
    if not hasattr(torch.cpu, "get_capabilities"):  # PyTorch before 2.10
        return bool(torch.cpu._is_vnni_supported())
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_vnni") or found.get("avx_vnni"))


class OpenVinoForm(InferenceForm):
    """A form whose maps OpenVINO computes. One picture at a time: other threads wait."""

    def __init__(self, form: InferenceForm, compiled: openvino.CompiledModel, contents: graph.Contents) -> None:
        super().__init__(form.trunk, form.pad, form.heads)
        self.contents = contents
        self.request = compiled.create_infer_request()
        self.outputs = len(compiled.outputs)
        self.lock = threading.Lock()

    def __call__(self, picture: Tensor) -> InferenceMaps:
        import openvino

        pixels = self.framed(picture).permute(0, 2, 3, 1).numpy()
        with self.lock:
            self.request.set_input_tensor(openvino.Tensor(pixels, shared_memory=True))
            made = self._new_outputs()
            self.request.infer()
            self._new_outputs()  # so that the request does not hold the maps
        maps = [torch.from_numpy(out.data).permute(0, 3, 1, 2) for out in made]
        if not self.contents.heads:
            return InferenceMaps([*maps], *self.heads(maps))
        codes, score, *taps = maps
        return InferenceMaps([*taps], codes, score)

    def _new_outputs(self) -> list[openvino.Tensor]:
        """Outputs of no size yet, which the next picture is written to."""
        import openvino

        made = [openvino.Tensor(openvino.Type.f32, openvino.Shape([1, 0, 0, 1])) for _ in range(self.outputs)]
        for i, tensor in enumerate(made):
            self.request.set_output_tensor(i, tensor)
        return made


def form_of(model: DeepMask, precision: Precision, photos: Path | None, refine: bool) -> OpenVinoForm:
    """The model's form, compiled once for each number of threads that PyTorch has."""
    check_model(model)  # it may have been moved since
    plain, contents = model.for_inference(), graph.Contents(heads=precision != "fp32", refine=refine)
    key = (precision, photos, contents, torch.get_num_threads())
    with _compiling:
        known = _forms.setdefault(plain, {})
        if key not in known:
            known[key] = OpenVinoForm(plain, _compiled(_graph(model, precision, photos, contents), precision), contents)
        return known[key]


def _compiled(made: openvino.Model, precision: Precision) -> openvino.CompiledModel:
    options = {
        "INFERENCE_PRECISION_HINT": HINTS[precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    return core().compile_model(made, "CPU", options)


def _graph(model: DeepMask, precision: Precision, photos: Path | None, contents: graph.Contents) -> openvino.Model:
    """The graph before it is compiled, kept on disk."""
    if precision != "int8":
        return cache.kept(model, str(contents), lambda: graph.converted(model, contents))
    paths = calibration.photos_in(photos)
    name = f"{contents}, int8 by {calibration.digest(paths)}"
    return cache.kept(model, name, lambda: calibration.quantized(graph.converted(model, contents), model, paths))

"""Peers: the dense pass by another runtime, from pixels to codes, scores and horizontal maps.

The rest is what the package does around its ops (resizing, the best N, suppression), with the ops of its reference.
"""

from __future__ import annotations

import copy
import unittest.mock
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharpmask.models import DeepMask, SharpMask, trunk
from sharpmask.models.inference import InferenceForm, InferenceMaps, InferenceTrunk, PlainHeads, Tap, made
from sharpmask.search import ProposalGenerator, Proposals
from sharpmask.search.engines.core import core
from sharpmask_kernels import use_backend

Run = Callable[[Tensor], list[Tensor]]
"""From a padded image (1, 3, h + S, w + S) to its codes, scores and horizontal maps, stride 16 first."""


class Dense(nn.Module):
    """The dense pass of a model in plain PyTorch."""

    def __init__(self, model: SharpMask) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> list[Tensor]:
        maps = self.model.dense(image)
        with use_backend("reference"):
            return [maps.code, maps.score, *self.model.horizontals(maps.taps)]


class Form(InferenceForm):
    """A form for inference whose maps come from ``run``; its taps are the horizontal maps."""

    def __init__(self, model: SharpMask, run: Run) -> None:
        trunk = InferenceTrunk((0, 0), model.mean, run)
        super().__init__(trunk, model.window // 2, PlainHeads(model.dense_heads))

    def __call__(self, picture: Tensor) -> InferenceMaps:
        code, score, *horizontals = self.trunk.taps(self.framed(picture))
        return InferenceMaps([*horizontals], code, score)


class Generator(ProposalGenerator):
    """A search with ``dense`` for the dense pass and the reference's ops for the rest."""

    dense: Form

    @property
    def form(self) -> InferenceForm:
        return self.dense

    def _horizontals(self, maps: Any, scale: int, taps: list[Tap], choose: Any, watch: Any) -> list[Tensor]:
        return [*map(made, taps)]

    def generate(self, image: Any) -> Proposals:
        with use_backend("reference"):
            return super().generate(image)


def maker(model: DeepMask, photo: Any, kind: str, **options: Any) -> Callable[[int], ProposalGenerator]:
    """What makes the generator of a number of windows, on a peer that is ready."""
    form = Form(cast(SharpMask, model), RUNS[kind](cast(SharpMask, model), **options))

    def make(count: int) -> ProposalGenerator:
        generator = Generator(model, top_n=count)
        generator.dense = form
        return generator

    make(1).generate(photo)  # compiles for the sizes of this photo
    return make


def eager(model: SharpMask, channels_last: bool = False) -> Run:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    dense = Dense(copy.deepcopy(model)).requires_grad_(False).to(memory_format=layout)
    return lambda image: cast(list[Tensor], dense(image.contiguous(memory_format=layout)))


def compiled(model: SharpMask, channels_last: bool = False, dynamic: bool = True, freezing: bool = False) -> Run:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    dense = Dense(copy.deepcopy(model)).requires_grad_(False).to(memory_format=layout)
    torch._dynamo.config.recompile_limit = 64  # a size a scale
    run = torch.compile(dense, dynamic=dynamic, options={"freezing": freezing})

    @torch.inference_mode(False)
    @torch.no_grad()
    def dense_pass(image: Tensor) -> list[Tensor]:
        # A copy that is no inference tensor: the compiler's guards tell the two apart.
        return cast(list[Tensor], run(image.clone(memory_format=layout)))

    return dense_pass


def onnxruntime(model: SharpMask, onnx: str) -> Run:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.force_spinning_stop", "1")  # or its threads wait busily while others run
    session = ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda image: [torch.from_numpy(x) for x in session.run(None, {name: image.contiguous().numpy()})]


def openvino(model: SharpMask, onnx: str, static: bool = False) -> Run:
    """``static``: compiled for each size, otherwise once for all."""
    import openvino as ov

    config = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",  # else bf16, where the machine has it
        "PERFORMANCE_HINT": "LATENCY",
    }
    requests: dict[tuple[int, ...], Any] = {}

    def request(shape: tuple[int, ...]) -> Any:
        if shape not in requests:
            network = core().read_model(onnx)
            if static:
                network.reshape(list(shape))
            requests[shape] = core().compile_model(network, "CPU", config).create_infer_request()
        return requests[shape]

    def run(image: Tensor) -> list[Tensor]:
        x = image.contiguous()
        inference = request(tuple(x.shape) if static else ())
        inference.set_input_tensor(0, ov.Tensor(x.numpy(), shared_memory=True))
        inference.infer()
        outputs = (inference.get_output_tensor(i).data for i in range(len(inference.model_outputs)))
        # With one request for all sizes, the next scale's maps are written where these are.
        return [torch.from_numpy(out if static else np.array(out)) for out in outputs]

    return run


RUNS: dict[str, Callable[..., Run]] = {
    "eager": eager,
    "compiled": compiled,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
}


def export(model: SharpMask, path: Path) -> None:
    """Writes the dense pass as ONNX, for images of all sizes."""
    image = torch.rand(1, 3, 4 * model.window, 3 * model.window)
    sizes = ({2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},)
    dense = Dense(model).requires_grad_(False)
    # torch.onnx cannot export a remainder by a dynamic size. Of a grey border, repeating its pixels is the same.
    with unittest.mock.patch.object(trunk, "symmetric_pad", lambda x, pad: F.pad(x, (pad,) * 4, mode="replicate")):
        program = torch.onnx.export(dense, (image,), dynamo=True, verbose=False, dynamic_shapes=sizes)
    assert program is not None
    path.write_bytes(program.model_proto.SerializeToString())

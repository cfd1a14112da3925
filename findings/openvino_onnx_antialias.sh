#!/usr/bin/env bash
# openvino 2026.4.1: an ONNX model that shrinks with antialiasing is read as one that shrinks without.
#
# Expected: `Resize` with `antialias` = 1 (ONNX opset 18) averages over the pixels that each result covers, as ONNX
# Runtime computes it, or read_model() says that it cannot.
# Behaviour: the attribute is passed over without a word. A fine pattern, which antialiasing makes an even grey, becomes
# black or white. A network that holds the shrinking of its photo, as torch.onnx.export writes `F.interpolate(...,
# antialias=True)`, so sees another picture. Shrink outside the model, or by average pooling where the factor is whole.
#
# Seen: "a chequered square, a quarter of the size: ONNX Runtime 0.50 to 0.50, OpenVINO 0.00 to 0.00, OpenVINO without
# antialias 0.00 to 0.00".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet openvino==2026.4.1 onnx==1.23.2 onnxruntime==1.32.0
"$work/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper


def model(antialias):
    resize = helper.make_node(
        "Resize",
        ["x", "", "", "size"],
        ["y"],
        mode="linear",
        coordinate_transformation_mode="half_pixel",
        antialias=antialias,
    )
    graph = helper.make_graph(
        [resize],
        "shrink",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 48, 48])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 12, 12])],
        [helper.make_tensor("size", TensorProto.INT64, [4], [1, 1, 12, 12])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(made, full_check=True)
    return made.SerializeToString()


y, x = (np.mgrid[:48, :48] + 1) // 2
picture = ((y + x) % 2).astype(np.float32)[None, None]
core = openvino.Core()


def by_openvino(antialias):
    return core.compile_model(core.read_model(model(antialias)), "CPU")(picture)[0]


session = onnxruntime.InferenceSession(model(1), providers=["CPUExecutionProvider"])
seen = {
    "ONNX Runtime": session.run(None, {"x": picture})[0],
    "OpenVINO": by_openvino(1),
    "OpenVINO without antialias": by_openvino(0),
}
shown = {name: f"{found[..., 2:-2, 2:-2].min():.2f} to {found[..., 2:-2, 2:-2].max():.2f}" for name, found in seen.items()}
print("a chequered square, a quarter of the size: " + ", ".join(f"{name} {values}" for name, values in shown.items()))
assert (seen["OpenVINO"] == seen["OpenVINO without antialias"]).all(), "the behaviour has changed"
assert np.abs(seen["OpenVINO"] - seen["ONNX Runtime"]).max() > 0.3, "the behaviour has changed"
PYTHON

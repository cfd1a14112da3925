#!/usr/bin/env bash
# torch 2.14.1 and onnxscript 0.7.2: torch.onnx.export refuses a remainder by a dynamic size.
#
# Expected: a module that torch.export takes with a dynamic size is written for it, as it is for a fixed one. ONNX has
# the operator (Mod).
# Behaviour: `x.remainder(n)`, n a size declared dynamic, is captured with n as a symbol. onnxscript makes a constant of
# the divisor, which a symbol is not: "int() argument must be ... not 'SymbolicTensor'". So wrapping or mirroring an
# index around a map of any size cannot be exported. With the size in a tensor of no dimension it can, and is right.
#
# Seen: "by a fixed size: exported; by a dynamic size: TypeError; by the size in a tensor: [0. 1. 2. 0. 1. 2.]".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.14.1 onnxscript==0.7.2 onnxruntime==1.32.0 numpy
"$work/venv/bin/python" - <<'PYTHON'
import onnxruntime
import torch


class ByNumber(torch.nn.Module):
    """A sequence twice."""

    def forward(self, x):
        return x[torch.arange(2 * x.shape[0]).remainder(x.shape[0])]


class ByTensor(torch.nn.Module):
    def forward(self, x):
        return x[torch.arange(2 * x.shape[0]).remainder(torch.full((), x.shape[0]))]


def export(module, sizes):
    return torch.onnx.export(
        module.eval(), (torch.arange(4.0),), dynamo=True, verbose=False, dynamic_shapes=sizes
    ).model_proto.SerializeToString()


dynamic = {"x": {0: torch.export.Dim("n", min=2, max=100)}}
export(ByNumber(), None)
assert torch.export.export(ByNumber(), (torch.arange(4.0),), dynamic_shapes=dynamic)
try:
    export(ByNumber(), dynamic)
    seen = "exported"
except torch.onnx.OnnxExporterError as error:
    while error.__cause__ is not None:
        error = error.__cause__
    seen = type(error).__name__
session = onnxruntime.InferenceSession(export(ByTensor(), dynamic), providers=["CPUExecutionProvider"])
(found,) = session.run(None, {"x": torch.arange(3.0).numpy()})
print(f"by a fixed size: exported; by a dynamic size: {seen}; by the size in a tensor: {found}")
assert seen == "TypeError" and found.tolist() == [0, 1, 2] * 2, "the behaviour has changed"
PYTHON

#!/usr/bin/env bash
# torch 2.14.1 and onnxscript 0.7.2: an antialiased resizing by a factor is exported with another factor.
#
# Expected: `F.interpolate(x, scale_factor=0.3, mode="bilinear", antialias=True)` gives the same from the ONNX model as
# from PyTorch. PyTorch documents that the factor that was given is used, unless recompute_scale_factor says that it be
# computed from the sizes: 11 pixels become 3, of 1 / 0.3 = 3.33 pixels each, not of 11 / 3 = 3.67.
# Behaviour: only the size of the result is exported, and the factor follows from it, so the pixels are cut at other
# places. Nothing warns. torch.export keeps the factor, and without antialias the model in ONNX does so too. Give a
# size, or a factor that fits the sizes.
#
# Seen: "largest difference from PyTorch, of pixels from 0 to 10: antialiased by 0.3 0.57, by a size 0.00, by 0.3
# without antialias 0.00".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.14.1 onnxscript==0.7.2 onnxruntime==1.32.0 numpy
"$work/venv/bin/python" - <<'PYTHON'
import onnxruntime
import torch
import torch.nn.functional as F

ramp = torch.arange(11.0).expand(1, 1, 11, 11).contiguous()


class Resize(torch.nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, x):
        return F.interpolate(x, mode="bilinear", **self.options)


def difference(**options):
    module = Resize(**options).eval()
    assert torch.equal(torch.export.export(module, (ramp,)).module()(ramp), module(ramp))
    model = torch.onnx.export(module, (ramp,), dynamo=True, verbose=False).model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": ramp.numpy()})
    assert found.shape == (1, 1, 3, 3)
    return float((torch.from_numpy(found) - module(ramp)).abs().max())


by_factor = difference(scale_factor=0.3, antialias=True)
by_size = difference(size=(3, 3), antialias=True)
plain = difference(scale_factor=0.3)
print(
    f"largest difference from PyTorch, of pixels from 0 to 10: antialiased by 0.3 {by_factor:.2f}, "
    f"by a size {by_size:.2f}, by 0.3 without antialias {plain:.2f}"
)
assert by_factor > 0.1 and max(by_size, plain) < 1e-4, "the behaviour has changed"
PYTHON

#!/usr/bin/env bash
# segmentation-models-pytorch 0.6.0: two of the five norms that its decoders document work in no U-Net.
#
# Expected: `Unet(decoder_use_norm=...)` takes "batchnorm", "identity", "layernorm", "instancenorm" and "inplace", as its
# docstring says ("inplace" needs another package).
# Behaviour: with "instancenorm" the model cannot be built: the initialisation fills the norm's weight, and
# nn.InstanceNorm2d has none by default. With "layernorm" it is built and fails at the first image: nn.LayerNorm
# normalises the last axis, but is given the channels' number for maps (batch, channels, height, width).
# `{"type": "instancenorm", "affine": True}` works.
#
# Seen: "batchnorm: works, identity: works, layernorm: RuntimeError in forward, instancenorm: AttributeError when built,
# instancenorm with affine: works".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet segmentation-models-pytorch==0.6.0 torch==2.14.1 torchvision==0.29.1 timm==1.0.31
"$work/venv/bin/python" - <<'PYTHON'
import segmentation_models_pytorch as smp
import torch


def outcome(norm):
    try:
        model = smp.Unet("resnet18", encoder_weights=None, decoder_use_norm=norm).eval()
    except Exception as error:
        return f"{type(error).__name__} when built"
    try:
        with torch.no_grad():
            assert model(torch.rand(1, 3, 64, 64)).shape == (1, 1, 64, 64)
    except RuntimeError as error:
        return f"{type(error).__name__} in forward"
    return "works"


norms = {name: name for name in ("batchnorm", "identity", "layernorm", "instancenorm")}
norms["instancenorm with affine"] = {"type": "instancenorm", "affine": True}
seen = {name: outcome(norm) for name, norm in norms.items()}
print(", ".join(f"{name}: {what}" for name, what in seen.items()))
assert list(seen.values()) == [
    "works",
    "works",
    "RuntimeError in forward",
    "AttributeError when built",
    "works",
], "the behaviour has changed"
PYTHON

#!/usr/bin/env bash
# torchvision 0.29.1: a mask that is resized together with its photo is moved off it.
#
# Expected: `v2.Resize` of an Image and a Mask keeps the mask on its object. Masks take the nearest pixel, as
# documented: that of the result's centre, as Pillow and "nearest-exact" of PyTorch take it.
# Behaviour: masks take the pixel of the result's upper left corner ("nearest" of PyTorch), photos are resampled around
# the centre. So masks move right and down by up to half a pixel of the result, and there is no option for masks. An
# object of a few pixels' width, as in feature maps or training at an eighth of the size, loses much of its overlap with
# itself. Resize the mask by F.interpolate(mode="nearest-exact").
#
# Seen: "a disc at an eighth of the size: photo around 15.5, mask around 15.9, IoU 0.83; by nearest-exact 15.5, IoU
# 1.00".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 numpy
"$work/venv/bin/python" - <<'PYTHON'
import torch
import torch.nn.functional as F
from torchvision import tv_tensors
from torchvision.transforms import v2

y, x = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
disc = (y - 127.5) ** 2 + (x - 127.5) ** 2 < 32**2
photo = tv_tensors.Image((disc * 255).byte().expand(3, -1, -1).contiguous())
small, mask = v2.Resize((32, 32))(photo, tv_tensors.Mask(disc[None].byte()))
truth = small[0] > 127
exact = F.interpolate(disc[None, None].float(), (32, 32), mode="nearest-exact")[0, 0] > 0


def centre(mask):
    return float(mask.nonzero().double().mean())


def iou(mask):
    return float((mask & truth).sum() / (mask | truth).sum())


mask = mask[0] > 0
print(
    f"a disc at an eighth of the size: photo around {centre(truth):.1f}, mask around {centre(mask):.1f}, "
    f"IoU {iou(mask):.2f}; by nearest-exact {centre(exact):.1f}, IoU {iou(exact):.2f}"
)
assert centre(mask) - centre(truth) > 0.3 and iou(mask) < 0.9 < iou(exact), "the behaviour has changed"
PYTHON

#!/usr/bin/env bash
# albumentations 2.0.8 and opencv-python-headless 4.14.0.94: Downscale moves a photo off its masks.
#
# Expected: A.Downscale lowers a photo's quality, as documented: smaller, and back to its size. What it shows stays in
# place, so masks and boxes, which the transform leaves as they are, still fit.
# Behaviour: by default both steps take the nearest pixel. OpenCV's INTER_NEAREST takes the upper left pixel of each
# block when it shrinks, and puts it over the whole block when it enlarges. The photo moves right and down, at the
# default factor of 0.25 by 1.5 pixels. A model learns masks that lie up and left of the objects.
# With interpolation_pair={"downscale": cv2.INTER_AREA, "upscale": cv2.INTER_LINEAR} it stays where it is.
#
# Seen: "a disc of 21 pixels' width in a photo of 640x480: moved by 1.5 and 1.5, IoU with its mask 0.75; by area and
# linear: 0.1 and 0.1, IoU 0.95".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet albumentations==2.0.8 opencv-python-headless==4.14.0.94 numpy==2.4.6
NO_ALBUMENTATIONS_UPDATE=1 "$work/venv/bin/python" - <<'PYTHON'
import albumentations as A
import cv2
import numpy as np

y, x = np.mgrid[:480, :640]
disc = ((y - 336) ** 2 + (x - 448) ** 2 <= 10**2).astype(np.uint8)
photo = np.repeat(disc[..., None] * 255, 3, axis=2)


def lowered(**options):
    both = A.Compose([A.Downscale(p=1, **options)])(image=photo, mask=disc)
    shown, mask = both["image"][..., 0] > 127, both["mask"] > 0
    moved = np.argwhere(shown).mean(axis=0) - np.argwhere(mask).mean(axis=0)
    return *(moved + 0.0).round(1), (shown & mask).sum() / (shown | mask).sum()


default = lowered()
smooth = lowered(interpolation_pair={"downscale": cv2.INTER_AREA, "upscale": cv2.INTER_LINEAR})
print(
    "a disc of 21 pixels' width in a photo of 640x480: moved by {:.1f} and {:.1f}, IoU with its mask {:.2f}; by area "
    "and linear: {:.1f} and {:.1f}, IoU {:.2f}".format(*default, *map(abs, smooth))
)
assert min(default[:2]) > 1 and default[2] < 0.8, "the behaviour has changed"
assert max(map(abs, smooth[:2])) < 0.2 and smooth[2] > 0.9, "the behaviour has changed"
PYTHON

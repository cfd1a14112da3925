#!/usr/bin/env bash
# pycocotools 2.0.11: a mask with grey levels is encoded as another mask, without a word.
#
# Expected: encode() takes nonzero pixels as the object, or refuses values other than 0 and 1. A mask that was saved as
# an antialiased PNG, or an index map of several objects, has such values.
# Behaviour: a run ends where a pixel differs from the one before it, and each run counts as the opposite of the last.
# An object of 4 pixels with one grey one comes back as 8 pixels, most of them background.
# A mask of 0 and 255 alone is encoded rightly.
#
# Seen: "white: 4 pixels, one grey: 8 pixels of which 1 is the object's".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet pycocotools==2.0.11 numpy==2.2.6
"$work/venv/bin/python" - <<'PYTHON'
import numpy as np
from pycocotools import mask as coco

white = np.zeros((4, 4), np.uint8, order="F")
white[1:3, 1:3] = 255
grey = white.copy(order="F")
grey[1, 1] = 128


def decoded(mask):
    return coco.decode(coco.encode(mask)) > 0


same = int((decoded(grey) & (grey > 0)).sum())
print(f"white: {decoded(white).sum()} pixels, one grey: {decoded(grey).sum()} pixels of which {same} is the object's")
assert (decoded(white) == (white > 0)).all()
assert decoded(grey).sum() == 8 and same == 1, "the behaviour has changed"
PYTHON

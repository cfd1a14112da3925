#!/usr/bin/env bash
# pyarrow 25.0.1 and pycocotools 2.0.11: decoded masks go into a column of Arrow, but no single one comes out.
#
# Expected: what FixedShapeTensorArray.from_numpy_ndarray() takes can be read as a whole (to_numpy_ndarray) and one by
# one (`array[i].to_numpy()`), with the same pixels.
# Behaviour: pycocotools decodes masks column by column. With the masks' axis put first, Arrow keeps that order by a
# permutation of the axes. As a whole the masks are right. One by one, to_numpy() and to_tensor() raise ArrowInvalid:
# "strides must not involve buffer over run", unless masks are square. With np.ascontiguousarray both ways work.
#
# Seen: "2 masks of 4x7 in column order: as a whole right, one by one ArrowInvalid; square: right, right; made
# contiguous: right, right".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet pyarrow==25.0.1 pycocotools==2.0.11 numpy==2.2.6
"$work/venv/bin/python" - <<'PYTHON'
import numpy as np
import pyarrow as pa
from pycocotools import mask as coco


def decoded(height, width):
    masks = (np.arange(2 * height * width) % 5 < 2).astype(np.uint8).reshape(2, height, width)
    rles = [coco.encode(np.asfortranarray(mask)) for mask in masks]
    return np.moveaxis(coco.decode(rles), -1, 0)


def outcome(masks):
    array = pa.FixedShapeTensorArray.from_numpy_ndarray(masks)
    whole = "right" if np.array_equal(array.to_numpy_ndarray(), masks) else "wrong"
    try:
        right = all(np.array_equal(array[place].to_numpy(), mask) for place, mask in enumerate(masks))
    except pa.ArrowInvalid as error:
        assert "strides" in str(error)
        return [whole, type(error).__name__]
    return [whole, "right" if right else "wrong"]


oblong, square = outcome(decoded(4, 7)), outcome(decoded(5, 5))
contiguous = outcome(np.ascontiguousarray(decoded(4, 7)))
print(
    "2 masks of 4x7 in column order: as a whole {}, one by one {}; ".format(*oblong)
    + "square: {}, {}; made contiguous: {}, {}".format(*square, *contiguous)
)
assert oblong == ["right", "ArrowInvalid"] and square == contiguous == ["right", "right"], "the behaviour has changed"
PYTHON

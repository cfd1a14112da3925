#!/usr/bin/env bash
# pyarrow 25.0.1: boolean masks are taken into a column of tensors, and not given back.
#
# Expected: a boolean array (masks, height, width) that FixedShapeTensorArray.from_numpy_ndarray() takes comes back by
# to_numpy_ndarray(), also out of a Parquet file; or it is refused at first, with a line on what to do.
# Behaviour: it is taken, and stored with a bit a pixel. to_numpy_ndarray(), to_tensor() and an item's to_numpy() raise
# ArrowInvalid, "bool is not valid data type for a tensor": after the file has been written. The storage still has the
# pixels (`array.storage.flatten()`, then reshape). Store masks as uint8.
#
# Seen: "boolean: written, read as a tensor: ArrowInvalid, by its storage: right; uint8: written, read as a tensor:
# right".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet pyarrow==25.0.1 numpy==2.2.6
"$work/venv/bin/python" - <<'PYTHON'
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

masks = np.arange(3 * 4 * 7).reshape(3, 4, 7) % 3 == 0


def written(masks):
    file = io.BytesIO()
    pq.write_table(pa.table({"mask": pa.FixedShapeTensorArray.from_numpy_ndarray(masks)}), file)
    file.seek(0)
    return pq.read_table(file)["mask"].combine_chunks()


def as_tensor(array):
    try:
        return "right" if np.array_equal(array.to_numpy_ndarray(), masks) else "wrong"
    except pa.ArrowInvalid as error:
        assert "bool" in str(error)
        return type(error).__name__


boolean = written(masks)
storage = boolean.storage.flatten().to_numpy(zero_copy_only=False).reshape(masks.shape)
by_storage = "right" if np.array_equal(storage, masks) else "wrong"
seen = as_tensor(boolean), by_storage, as_tensor(written(masks.astype(np.uint8)))
print(
    "boolean: written, read as a tensor: {}, by its storage: {}; uint8: written, read as a tensor: {}".format(*seen)
)
assert seen == ("ArrowInvalid", "right", "right"), "the behaviour has changed"
PYTHON

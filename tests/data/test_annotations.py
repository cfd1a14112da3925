"""Run lengths of compressed COCO masks."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from sharpmask.data.annotations import decode_counts


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 300), min_size=1, max_size=60),
    st.integers(0, 2**26),
)
def test_counts_decode_as_pycocotools_wrote_them(runs: list[int], first: int) -> None:
    runs = [first, *runs]
    written = coco_mask.frPyObjects({"size": [1, sum(runs)], "counts": runs}, 1, sum(runs))["counts"]
    np.testing.assert_array_equal(decode_counts(written, sum(runs)), runs)


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_any_bytes_decode_or_raise(data: bytes) -> None:
    try:
        runs = decode_counts(data, 20)
    except ValueError:
        return
    assert len(runs) <= len(data)


def test_empty_counts() -> None:
    assert decode_counts(b"", 0).shape == (0,)

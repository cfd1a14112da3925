"""Run-length codes against pycocotools."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco

from sharpmask_kernels import rle

sides = st.integers(0, 9)


@settings(deadline=None, max_examples=400)
@given(
    bits=arrays.arrays(bool, st.tuples(sides, sides)),
    margins=st.tuples(*[st.integers(0, 4)] * 4),
)
def test_encode(bits: np.ndarray, margins: tuple[int, int, int, int]) -> None:
    top, bottom, left, right = margins
    image = np.pad(bits, ((top, bottom), (left, right)))
    if image.size == 0:
        image = np.zeros((image.shape[0] + 1, image.shape[1] + 1), dtype=bool)
    expected = coco.encode(np.asfortranarray(image.astype(np.uint8)))
    assert rle.encode(bits, (top, left), image.shape) == expected["counts"]


@settings(deadline=None, max_examples=100)
@given(image=arrays.arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_encode_a_whole_image(image: np.ndarray) -> None:
    expected = coco.encode(np.asfortranarray(image.astype(np.uint8)))
    assert rle.encode(image, (0, 0), image.shape) == expected["counts"]
    counts = rle.runs(image, (0, 0), image.shape)
    assert counts.sum() == image.size
    assert (counts[1:] > 0).all()
    values = np.arange(len(counts)) % 2 == 1
    assert np.array_equal(np.repeat(values, counts).reshape(image.shape, order="F"), image)


def test_runs_across_columns_are_one_run() -> None:
    ones = np.ones((3, 4), dtype=bool)
    assert rle.runs(ones, (0, 1), (3, 6)).tolist() == [3, 12, 3]
    assert rle.runs(ones, (0, 0), (3, 4)).tolist() == [0, 12]
    assert rle.runs(ones, (1, 0), (4, 4)).tolist() == [1, 3, 1, 3, 1, 3, 1, 3]
    assert rle.runs(~ones, (0, 0), (3, 4)).tolist() == [12]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(0, 2**29 - 1), min_size=1, max_size=12))
def test_characters_of_any_run_lengths(counts: list[int]) -> None:
    # pycocotools has room for six characters a run, so not for longer runs (it writes past its buffer then).
    # pycocotools writes what it is given, whether or not the runs fill the image.
    expected = coco.frPyObjects({"counts": counts, "size": [1, 1]}, 1, 1)["counts"]
    given_ = np.array(counts)
    assert rle.counts_to_bytes(given_) == expected
    assert given_.tolist() == counts  # not written


def decoded(characters: bytes) -> list[int]:
    """The run lengths that COCO's characters stand for."""
    counts: list[int] = []
    value, shift = 0, 0
    for character in characters:
        group = character - 48
        value |= (group & 31) << shift
        shift += 5
        if not group & 32:  # the last group; its bit 4 is the sign
            value -= (group & 16) << (shift - 4)
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value, shift = 0, 0
    return counts


def test_a_mask_in_a_giant_image_takes_little() -> None:
    side = 10**6  # 10^12 pixels
    counts = rle.runs(np.ones((2, 2), dtype=bool), (5, 7), (side, side))
    assert counts.tolist() == [7 * side + 5, 2, side - 2, 2, side * side - 8 * side - 7]
    assert decoded(rle.encode(np.ones((2, 2), dtype=bool), (5, 7), (side, side))) == counts.tolist()

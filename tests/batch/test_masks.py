"""Many masks checked at once, beside one at a time."""

import numpy as np
import pyarrow as pa
import pytest
from pycocotools import mask as coco_mask

from sharpmask.batch import masks
from sharpmask.batch.masks import BadMask, areas


def some_masks(count: int) -> tuple[list[str], np.ndarray, list[int]]:
    """Counts, photos' pixels and areas of random masks; some are empty, full, or of one row."""
    rng, counts, pixels, expected = np.random.default_rng(0), [], [], []
    for index in range(count):
        height, width = rng.integers(1, 60, 2)
        mask = rng.random((height, width)) < (rng.random(), 0, 1)[index % 3]
        if index % 5 == 0:
            mask = np.kron(mask, np.ones((9, 40), dtype=bool))
        rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        counts.append(rle["counts"].decode())
        pixels.append(mask.size)
        expected.append(int(mask.sum()))
    return counts, np.array(pixels), expected


@pytest.mark.parametrize("piece", [1, 300, 1 << 16])
def test_areas(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "PIECE", piece)
    counts, pixels, expected = some_masks(200)
    assert areas(pa.array(counts), pixels).tolist() == expected
    assert areas(pa.array(counts)[7:90], pixels[7:90]).tolist() == expected[7:90]
    assert areas(pa.array([], pa.string()), pixels[:0]).tolist() == []


BAD = {
    "no run": "",
    "the photo is larger": "0",
    "a number that does not end": "o",
    "characters of no digit": "~",
    "before the digits": "/",
    "no ASCII": "é",
    "a number beyond 30 bits": "oooooo1",
    "a negative run": "0O",
    "a run beyond the photo, and back": "PPPP1" + "P" * 4 + "O",
    "more characters than the photo has pixels": "1" * 100_000,
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("piece", [300, 1 << 16])
def test_broken_masks_are_named(what: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "PIECE", piece)
    counts, pixels, _ = some_masks(40)
    counts[23] = BAD[what]
    with pytest.raises(BadMask, match="RLE") as caught:
        areas(pa.array(counts), pixels)
    assert caught.value.index == 23

"""Full images in the released geometry, against a plain evaluation of the authors' steps in numpy, loop by loop."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from sharpmask.convert import convert
from sharpmask.models.config import Geometry
from sharpmask.search.generator import ProposalGenerator
from sharpmask.search.released import Released, ReleasedExact, places, resize_weights
from sharpmask_kernels import Windows

from ..convert.released_models import Builder, forward, normalise, values
from ..convert.torch7_writer import Obj, save

Array = np.ndarray
CELLS, SIDE = 3, 48
SCALES = [2**e for e in (-1.0, -0.5, 0.0, 0.5)]
THRESHOLD = np.log(0.2 / 0.8)


def enlarge_row(source: Array, size: int) -> Array:
    """One axis as ``image.scale`` enlarges or reduces it, in doubles."""
    old = len(source)
    out = np.zeros(size)
    for i in range(size):
        if size > old:
            at = i * (old - 1) / (size - 1)
            low = min(int(at), old - 2)
            out[i] = (low + 1 - at) * source[low] + (at - low) * source[low + 1]
        else:
            cover = [max(0.0, min(k + 1, (i + 1) * old / size) - max(k, i * old / size)) for k in range(old)]
            out[i] = np.dot(cover, source) / sum(cover)
    return out


def scale_image(mask: Array, size: int) -> Array:
    rows = np.stack([enlarge_row(row, size) for row in mask])
    return np.stack([enlarge_row(column, size) for column in rows.T]).T


def pyramid(image: Array, scale: float) -> Array:
    """image (3, h, w) resized with its corner pixels' centres kept, padded with grey, normalised."""
    out = image
    for axis in (1, 2):
        old, new = image.shape[axis], int(np.floor(image.shape[axis] * scale + 0.5))
        at = np.arange(new) * ((old - 1) / (new - 1))
        low = np.minimum(at.astype(int), old - 2)
        part = (at - low).reshape((-1, 1) if axis == 1 else (1, -1))
        out = out.take(low, axis) * (1 - part) + out.take(low + 1, axis) * part
    pad = SIDE // 2
    return normalise(np.pad(out, ((0, 0), (pad, pad), (pad, pad)), constant_values=0.5))


def dense(model: Obj, image: Array, scale: float) -> tuple[Array, Array, list[Array]]:
    """Codes (code, rows, cols), scores (rows, cols) and horizontal maps of all windows at one scale."""
    f = model.fields
    modules = f["trunk"].fields["modules"]
    # Views and crops are dropped and the linear layer becomes a convolution.
    taps: list[Array] = []
    forward(Obj("nn.Sequential", {"modules": modules[:7]}), pyramid(image, scale), taps)
    x = forward(modules[9], forward(modules[8], taps[6]))
    windows = np.lib.stride_tricks.sliding_window_view(x, (CELLS, CELLS), (1, 2))
    linear = modules[11].fields
    flat = np.moveaxis(windows, 0, 2).reshape(*windows.shape[1:3], -1)
    code = flat @ values(linear["weight"]).T + values(linear["bias"])
    first, last = (f["scoreBranch"].fields["modules"][i].fields for i in (1, 4))
    hidden = np.maximum(code @ values(first["weight"]).T + values(first["bias"]), 0)
    score = (hidden @ values(last["weight"]).T + values(last["bias"]))[:, :, 0]
    maps = []
    for k in range(1, 5) if "neths" in f else ():
        parts = [m for m in f["neths"][k].fields["modules"] if m.name != "nn.SpatialZeroPadding"]
        maps.append(forward(Obj("nn.Sequential", {"modules": parts}), taps[(6, 5, 4, 2)[k - 1]]))
    return code, score, maps


def logits_at(model: Obj, found: tuple[Array, Array, list[Array]], row: int, col: int, refine: bool) -> Array:
    code, _, maps = found
    f = model.fields
    if not refine:
        out = forward(f["maskBranchDM"].fields["modules"][0], code[row, col])
        return out.reshape(int(len(out) ** 0.5), -1)
    mask = forward(f["refs"][0], code[row, col]).reshape(-1, CELLS, CELLS)
    for j, horizontal in enumerate(maps):
        side, t = CELLS << j, 1 << j
        part = np.zeros((len(horizontal), side, side))
        cut = horizontal[:, row * t : row * t + side, col * t : col * t + side]
        part[:, : cut.shape[1], : cut.shape[2]] = cut
        _, *rest = f["refs"][j + 1].fields["modules"]
        mask = np.maximum(part + forward(f["netvs"][j + 1], mask), 0)
        mask = forward(Obj("nn.Sequential", {"modules": rest[2:]}), mask) if j == 3 else mask.repeat(2, 1).repeat(2, 2)
        if j == 3:
            mask = mask.reshape(SIDE, SIDE)
    return mask


def paste(logits: Array, row: int, col: int, scale: float, size: tuple[int, int]) -> tuple[Array, float]:
    """The mask on the image, pixel by pixel, and the smallest distance of its logits from the threshold."""
    side = int(np.floor(SIDE / scale))
    big = scale_image(logits, side)
    out = np.zeros(size, bool)
    step, delta = 16 / scale, SIDE / 2 / scale
    for i in range(side):
        y = int(np.floor(row * step - delta + i))
        for j in range(side):
            x = int(np.floor(col * step - delta + j))
            if big[i, j] > THRESHOLD and 0 <= y < size[0] and 0 <= x < size[1]:
                out[y, x] = True
    return out, float(np.abs(big - THRESHOLD).min())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Obj, Path]:
    released = Builder(seed=4).sharpmask()
    return released, save({"model": released}, tmp_path_factory.mktemp("released") / "model.t7")


@pytest.mark.parametrize("geometry", ["released", "released-exact"])
@pytest.mark.parametrize("refine", [True, False])
def test_full_images(model: tuple[Obj, Path], geometry: Geometry, refine: bool) -> None:
    """Windows, scores and masks equal those of the authors' steps, on a photo of odd sizes."""
    data, path = model
    rng = np.random.default_rng(5)
    photo = rng.integers(0, 256, (7, 9, 3), np.uint8).repeat(10, 0).repeat(9, 1)[:66, :77]
    ours = convert(path).model
    assert ours.search.geometry == "released"
    search = replace(ours.search, scales=tuple(SCALES), geometry=geometry)
    found = ProposalGenerator(ours, top_n=12, refine=refine, search=search).generate(photo)
    image = photo.transpose(2, 0, 1) / 255
    maps = [dense(data, image, scale) for scale in SCALES]
    ranked = sorted(
        (-score, s, r, c) for s, (_, scores, _) in enumerate(maps) for (r, c), score in np.ndenumerate(scores)
    )[:12]
    expected = []
    for score, s, r, c in ranked:
        row, col = r, c
        if geometry == "released-exact":
            width = maps[s][1].shape[1]
            number = r * width + c + 1
            # Cells are counted from 1, as in the authors' code.
            row, col = max(1, number // width) - 1, max(1, number % width + 1) - 1
        mask, margin = paste(logits_at(data, maps[s], row, col, refine), row, col, SCALES[s], photo.shape[:2])
        if mask.any():
            expected.append((1 / (1 + np.exp(score)), mask, margin))
    assert len(expected) == len(found) >= 8
    np.testing.assert_allclose(found.scores, [e[0] for e in expected], rtol=0, atol=1e-5)
    for ours_mask, (_, mask, margin) in zip(found.masks(), expected, strict=True):
        assert np.array_equal(ours_mask, mask), (np.count_nonzero(ours_mask != mask), margin)
    assert 0.02 < np.mean([e[1].mean() for e in expected]) < 0.98


@pytest.mark.parametrize("size", [160, 113, 226, 80, 905, 1, 159, 161])
@pytest.mark.parametrize("length", [160, 56])
def test_resizing_one_axis(length: int, size: int) -> None:
    source = np.random.default_rng(0).normal(size=length)
    np.testing.assert_allclose(resize_weights(length, size) @ source, enlarge_row(source, size), atol=2e-4)


def test_resized_masks_keep_their_corners() -> None:
    weights = resize_weights(56, 905)
    assert weights[0, 0] == weights[-1, -1] == 1 and np.allclose(weights.sum(1), 1)


def test_halves_round_up_and_corners_stay() -> None:
    picture = torch.rand(1, 3, 426, 10)
    placement = Released(160)
    resized = placement.resize(picture, 0.25)
    assert resized.shape[2:] == (107, 3)
    torch.testing.assert_close(
        resized[..., [0, 0, -1, -1], [0, -1, 0, -1]], picture[..., [0, 0, -1, -1], [0, -1, 0, -1]], rtol=0, atol=1e-4
    )
    assert placement.resize(torch.rand(1, 3, 2, 2), 0.1).shape[2:] == (1, 1)


def windows(score: list[float], scale: list[int], row: list[int], col: list[int]) -> Windows:
    integers = [torch.tensor(v) for v in ([0] * len(score), scale, row, col)]
    return Windows(torch.tensor(score), *integers)


def test_the_shift_of_the_released_code() -> None:
    """Every cell of a grid of 3 by 4 moves up and right, from the last column to the first of the same row."""
    rows, cols = np.divmod(np.arange(12), 4)
    shifted = ReleasedExact(160).shift(windows([0.0] * 12, [0] * 12, rows.tolist(), cols.tolist()), [4])
    expected = [(max(1, n // 4) - 1, max(1, n % 4 + 1) - 1) for n in range(1, 13)]
    assert list(zip(shifted.row.tolist(), shifted.col.tolist(), strict=True)) == expected


def test_published_mask_sizes() -> None:
    assert [int(160 / 2 ** (e / 2)) for e in range(-5, 2)] == [905, 640, 452, 320, 226, 160, 113]
    assert places(5, 1.0, 160, 160)[[0, -1]].tolist() == [0, 159]
    assert places(0, 2**-0.5, 160, 226)[0] == -114


def test_masks_outside_the_image_are_empty() -> None:
    found: list[dict[str, Any]] = Released(48).encode(
        torch.ones(2, 48, 48), windows([1, 1], [0, 0], [0, 40], [0, 0]), (30, 20), [1.0], 0.2
    )
    inside, outside = (coco_mask.decode(rle) for rle in found)
    assert inside.shape == outside.shape == (30, 20)
    assert inside[:24].all() and not inside[24:].any() and not outside.any()
